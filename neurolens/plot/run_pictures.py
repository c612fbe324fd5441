"""All the pictures of a run, from whatever cubes its store holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xarray as xr

from neurolens.errors import DataError, MissingMeasurementError, NeurolensError
from neurolens.mortality import functional_death
from neurolens.plot.attribution_images import ShownImages
from neurolens.plot.attribution_numbers import AttributionNumbers, attribution_numbers
from neurolens.plot.attribution_pictures import PANELS, attribution_pictures, image_pictures
from neurolens.plot.clusters_pictures import ClusterNumbers, cluster_numbers, cluster_pictures
from neurolens.plot.concept_effects import effects_pictures
from neurolens.plot.concept_numbers import ConceptNumbers, LifeRule, concept_numbers
from neurolens.plot.concept_pictures import concept_pictures
from neurolens.plot.pairs_numbers import CUBES, PairNumbers, pair_numbers
from neurolens.plot.pairs_pictures import pair_pictures
from neurolens.plot.picture import Picture
from neurolens.plot.pictures import ImagesById, Scores, pictures, scores, training_pictures
from neurolens.plot.units import counted
from neurolens.plot.units_pictures import (
    UnitCounts,
    drawable_spectra,
    log_pictures,
    spectra_pictures,
    unit_counts,
    unit_pictures,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunPictures:
    """The pictures of a run, the numbers they were drawn from, and in words what is missing.

    Attributes
    ----------
    pictures : list of Picture
        In order: training, samples, concepts, effects of deaths, adopted tallies, units, activations, adopted logs,
        clusters of units, attributions, pairs of units and heads.
    scores, counts, concepts, tallies, log, clusters, attributions, pairs
        Of samples, of units, of concepts, of adopted tallies, of adopted logs (a summary), of clusters of units, of
        attributions by them and of pairs of units and heads; None where the run does not have them.
    functional
        What `neurolens.functional_death` says of the deaths; None where effects were not measured.
    notes : list of str
        What is missing.
    """

    pictures: list[Picture] = field(default_factory=list)
    scores: Scores | None = None
    counts: UnitCounts | None = None
    concepts: ConceptNumbers | None = None
    tallies: ConceptNumbers | None = None
    functional: "pd.DataFrame | None" = None
    log: xr.Dataset | None = None
    clusters: ClusterNumbers | None = None
    attributions: AttributionNumbers | None = None
    pairs: PairNumbers | None = None
    notes: list[str] = field(default_factory=list)


def run_pictures(
    cubes: Mapping[str, xr.Dataset],
    *,
    metrics: "pd.DataFrame | None" = None,
    images: "ImagesById | None" = None,
    external: Mapping[str, xr.DataArray] | None = None,
    rule: LifeRule | None = None,
    galleries: "Callable[[xr.Dataset], Picture | None] | None" = None,
    shown: Callable[[], ShownImages] | None = None,
    panels: int = PANELS,
    filtered: str | None = None,
) -> RunPictures:
    """Draw every picture that the cubes of a run allow. **Eager**.

    Parameters
    ----------
    cubes : Dataset by name
        `samples`, `concepts`, `effects`, `tallies`, `units`, `activations`, `dormancy`, `clusters`, `attributions`, and
        `pools`, `pairs`, `texts` and `codes`, or some of them. Those without a row are passed over.
    metrics : DataFrame, optional
        The training's ``metrics.csv``.
    images : function, optional
        From sample ids to their (H, W, C) images.
    external : mapping, optional
        Scores from elsewhere, (sample) each, that the samples' are compared with.
    rule : LifeRule, optional
        By which reading and rule concepts live and die.
    galleries : function, optional
        From the concepts cube to a picture of what units see: `neurolens.report.galleries_of`.
    shown : function, optional
        To the images as the network is shown them; without it there are no panels of attributions.
    panels : int
        Of how many images there are panels, evenly spaced.
    filtered : str, optional
        The set of units that is looked at closely: see `attribution_numbers`.

    Raises
    ------
    SchemaError
        If there is no such set of units.
    """
    out = RunPictures()
    draw: dict[str, Callable[[xr.Dataset], None]] = {
        "samples": lambda cube: _samples(out, cube, metrics, images, external),
        "concepts": lambda cube: _concepts(out, cube, rule, galleries),
        "effects": lambda cube: _effects(out, cube),
        "tallies": lambda cube: _tallies(out, cube, rule),
        "units": lambda cube: _units(out, cube),
        "activations": lambda cube: _activations(out, cube),
        "dormancy": lambda cube: _log(out, cube),
        "clusters": lambda cube: _clusters(out, cube),
        "attributions": lambda cube: _attributions(out, cube, shown, panels, filtered),
    }
    for name in draw:
        if name not in cubes or not has_rows(cubes[name]):
            continue
        try:
            draw[name](cubes[name])
        except MissingMeasurementError as error:
            out.notes.append(f"There is nothing to draw of {name}: {error}")
    paired = {name: cubes[name] for name in CUBES if name in cubes and has_rows(cubes[name])}
    if "pools" in paired:
        try:
            _pairs(out, paired, images)
        except MissingMeasurementError as error:
            out.notes.append(f"There is nothing to draw of pairs: {error}")
    if metrics is not None and out.scores is None:
        out.pictures[:0] = training_pictures(metrics)
    return out


def has_rows(cube: xr.Dataset) -> bool:
    """Tell whether a cube holds a number at all."""
    return any(variable.size for variable in cube.data_vars.values())


def _samples(
    out: RunPictures,
    cube: xr.Dataset,
    metrics: "pd.DataFrame | None",
    images: "ImagesById | None",
    external: Mapping[str, xr.DataArray] | None,
) -> None:
    given = scores(cube)
    out.notes += given.notes
    try:
        drawn = pictures(cube, given=given, metrics=metrics, images=images, external=external)
    except DataError as error:
        out.notes.append(f"There are no images: {error}")
        drawn = pictures(cube, given=given, metrics=metrics, external=external)
    out.pictures += drawn
    out.scores = given


def _concepts(
    out: RunPictures,
    cube: xr.Dataset,
    rule: LifeRule | None,
    galleries: "Callable[[xr.Dataset], Picture | None] | None",
) -> None:
    out.concepts = concept_numbers(cube, rule=rule)
    out.notes += out.concepts.notes
    out.pictures += concept_pictures(cube, given=out.concepts)
    if galleries is None:
        return
    try:
        drawn = galleries(cube)
    except NeurolensError as error:  # what they need besides the store may be gone
        out.notes.append(f"There are no galleries of units: {error}")
    else:
        out.pictures += [] if drawn is None else [drawn]


def _effects(out: RunPictures, cube: xr.Dataset) -> None:
    if out.concepts is not None and "ablated_logit" in cube:
        out.functional = functional_death(cube, out.concepts.events)
        out.pictures += effects_pictures(out.functional)


def _tallies(out: RunPictures, cube: xr.Dataset, rule: LifeRule | None) -> None:
    out.tallies = concept_numbers(cube, rule=rule)
    out.notes += out.tallies.notes
    out.pictures += concept_pictures(cube, given=out.tallies)


def _units(out: RunPictures, cube: xr.Dataset) -> None:
    given = unit_counts(cube)
    out.notes += given.notes
    out.pictures += unit_pictures(cube, given=given)
    out.counts = given


def _activations(out: RunPictures, cube: xr.Dataset) -> None:
    found, note = drawable_spectra(cube)
    out.notes += [note] if note else []
    out.pictures += [] if found is None else spectra_pictures(found)


def _log(out: RunPictures, cube: xr.Dataset) -> None:
    out.log = counted(cube)
    out.pictures += log_pictures(cube)


def _clusters(out: RunPictures, cube: xr.Dataset) -> None:
    out.clusters = cluster_numbers(cube)
    out.notes += out.clusters.notes
    out.pictures += cluster_pictures(cube, given=out.clusters)


def _attributions(
    out: RunPictures,
    cube: xr.Dataset,
    shown: Callable[[], ShownImages] | None,
    panels: int,
    filtered: str | None,
) -> None:
    out.attributions = attribution_numbers(cube, filtered=filtered)
    out.notes += out.attributions.notes
    out.pictures += attribution_pictures(cube, given=out.attributions)
    if shown is None or not panels:
        return
    try:
        out.pictures += image_pictures(out.attributions, shown(), panels)
    except NeurolensError as error:  # what they need besides the store may be gone
        out.notes.append(f"There are no panels of attributions: {error}")


def _pairs(out: RunPictures, cubes: Mapping[str, xr.Dataset], images: "ImagesById | None") -> None:
    out.pairs = pair_numbers(cubes)
    drawn, notes = pair_pictures(out.pairs, images=images)
    out.pictures += drawn
    out.notes += [*out.pairs.notes, *notes]
