"""Opening what the rows of a cube are measured from: samples and checkpoints, and what follows from other cubes."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from neurolens.errors import StudyError, nearest
from neurolens.rows import asking, asking_phrases, asking_sets
from neurolens.rows.materials import MEASURES, Materials, device, table_of
from neurolens.study import Study

if TYPE_CHECKING:
    from neurolens.data import SampleSet
    from neurolens.store import Axis


def gather(study: Study, cube: str = "samples", *, beside: Materials | None = None) -> Materials:
    """Open what the rows of ``cube`` are measured from.

    Parameters
    ----------
    beside
        What was opened for another cube of the same study: its samples, checkpoints and network are taken over.

    Raises
    ------
    StudyError
        If the study has no table for the cube, or lists seeds: each of them has rows of its own.
    MissingCheckpointError, CheckpointError, DataError
        If there is no checkpoint, or the data cannot be read.
    CaptureError
        If the network does not have the layers that the study names.
    """
    from neurolens import checkpoints, clip_models, data, models
    from neurolens.study.seeds import one_run

    study = one_run(study)
    if cube not in MEASURES:
        raise StudyError(f"there is no cube {cube!r}; {nearest(cube, MEASURES)}")
    if getattr(study, cube) is None:
        raise StudyError(f"study {study.name!r} does not ask for {cube}; add a [{cube}] table to its file")
    measure, table = import_module(MEASURES[cube]), table_of(study, cube)
    if cube in asking_sets.ASKED:
        beside = gather(study, "clusters", beside=beside)
    phrases = None
    if cube in asking_phrases.ASKED:
        texts = beside = gather(study, "texts", beside=beside)
        pools = gather(study, "pools", beside=texts) if asking_phrases.by_norms(study) else None
        beside, phrases = pools or texts, asking_phrases.asked_phrases(texts, pools)
    shared = None if beside is None else beside.shared
    if phrases is not None:
        samples: SampleSet = phrases.pairs
    elif hasattr(measure, "open_samples"):
        samples = measure.open_samples(table)
    else:
        samples = shared = data.study_samples(study) if shared is None else shared
    if beside is None:
        network = models.build(study.model)
        series = checkpoints.discover(study.checkpoints, source=study.model.transformers)
        clip_models.require_fitting(study.model, network.module, study.checkpoints.files)
    else:
        network, series = beside.taken(), beside.every
    if cube in asking_sets.ASKED:
        samples = asking_sets.asked_samples(study, samples)
    every, asked = series, asking.asked(study, series) if cube in asking.ASKED else None
    if asked is not None:
        series = asking.restricted(series, asked)
    sets = asking_sets.asked_sets(beside) if cube in asking_sets.ASKED and beside is not None else None
    if sets is not None:
        series = asking_sets.restricted(series, sets)
    if phrases is not None:
        series = asking_phrases.restricted(series, phrases)
    layers = () if asked is None else asked.layers
    given = {} if asked is None else {"layers": layers}
    wanted = hasattr(measure, "axes") and len(series.checkpoints) > 0
    axes: dict[str, Axis] = measure.axes(network, samples, table, **given) if wanted else {}
    if wanted and sets is not None:
        axes |= sets.axes()
    if wanted and phrases is not None:
        axes |= phrases.axes()
    materials = Materials(
        study=study,
        cube=cube,
        samples=samples,
        series=series,
        every=every,
        model=network.description,
        device=device(study.compute),
        axes=axes,
        block_samples=measure.block_size(table, axes) if hasattr(measure, "block_size") else None,
        asked=None if asked is None else asked.units,
        sets=sets,
        phrases=phrases,
        layers=layers,
        reference=measure.reference(table, series) if hasattr(measure, "reference") else None,
        shared=shared,
    )
    materials.networks.put(network)
    return materials


def gather_all(study: Study, names: Iterable[str]) -> Iterator[Materials]:
    """Open what the rows of several cubes are measured from: samples, checkpoints and a network once for all.

    Raises
    ------
    NeurolensError
        As `gather`.
    """
    materials = None
    for name in names:
        materials = gather(study, name, beside=materials)
        yield materials
