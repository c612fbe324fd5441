"""The pictures of units: of a units cube, of adopted dormancy logs, and of the spectra of activations."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from neurolens import schema, spectra, units
from neurolens.errors import MissingMeasurementError, NonFiniteError
from neurolens.plot.picture import Picture
from neurolens.plot.style import new_figure, styled
from neurolens.plot.units import counted, dormancy_curves, dormancy_evolution, dormancy_heatmap
from neurolens.plot.units_changes import threshold_curves, transition_ribbons
from neurolens.plot.units_spectra import rank_curves, singular_values
from neurolens.units.definitions import DEFINITIONS
from neurolens.units.dormancy import NonFinite
from neurolens.units.layers_of import layers_of

DRAWN = ("redo", "dead", "lop", "lop_rl", "redo_centred")
TAUS = 0.025, 0.1
"""Thresholds of ``redo`` that are drawn: the paper's, and that of the reference's logs; the last of them in detail."""
SWEEP = np.geomspace(1e-3, 1, 60)
PANELS = 3
"""Of how many layers singular values are drawn."""
SIDE = (6.4, 3.6)
"""Width and height of a picture that has its legend at the side, in inches."""
WORK = 1e12
"""Multiplications up to which spectra are computed for a picture: about a minute."""
READ = 4e9
"""Bytes of activations up to which they are."""


@dataclass(frozen=True)
class UnitCounts:
    """What is counted of a units cube, computed.

    Attributes
    ----------
    by_definition : (definition, series, layer)
        Dormant units by every definition that what was measured allows, at its own threshold.
    by_tau : (tau, series, layer)
        Dormant units by ``redo`` at ``TAUS``.
    sweep : (tau, series)
        Share of dormant units by ``redo`` at many thresholds.
    changes : (transition)
        What `neurolens.transitions` returns of ``redo`` at the last of ``TAUS``.
    notes : tuple of str
        What is missing, in words.
    """

    by_definition: xr.Dataset
    by_tau: xr.Dataset
    sweep: xr.Dataset
    changes: xr.Dataset
    notes: tuple[str, ...]


def unit_counts(ds: xr.Dataset) -> UnitCounts:
    """Count dormant units, leaving out checkpoints that were not measured, and say so. **Eager**.

    Raises
    ------
    MissingMeasurementError
        If no checkpoint was measured.
    SchemaError
        If ``ds`` is not a units cube.
    """
    notes = []
    names = [name for name in DRAWN if all(read in ds for read in DEFINITIONS[name].reads)]
    try:
        units.dormancy(ds, "redo")
    except MissingMeasurementError as error:
        notes.append(f"Counts of dormant units leave out what is missing: {error}")
    reads = {"abs_sum", *(read for name in names for read in DEFINITIONS[name].reads)}
    held = ds[sorted(reads)].load()
    try:
        found = _count(held, names, "error")
    except NonFiniteError as error:
        notes.append(f"Units whose activations are not finite count as alive: {error}")
        found = _count(held, names, "alive")
    return UnitCounts(*found, tuple(notes))


def _count(
    ds: xr.Dataset, names: list[str], non_finite: NonFinite
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset, xr.Dataset]:
    def mask(definition: str | list[str], tau: object = None) -> xr.DataArray:
        return units.dormant(ds, definition, tau, non_finite=non_finite, missing="drop")  # type: ignore[arg-type]

    sweep = units.dormancy_summary(mask("redo", SWEEP))[["pooled_fraction", "fraction"]]
    return (
        counted(units.dormancy_summary(mask(names))),
        counted(units.dormancy_summary(mask("redo", list(TAUS)))),
        counted(sweep),
        units.transitions(mask("redo", TAUS[-1])).compute(),
    )


def unit_pictures(ds: xr.Dataset, *, given: UnitCounts | None = None) -> list[Picture]:
    """Draw every picture that a units cube allows. **Eager**.

    Parameters
    ----------
    ds : (series, unit)
        The units cube.
    given : UnitCounts, optional
        What `unit_counts` returned, if it was computed already.
    """
    given = given or unit_counts(ds)
    detail = given.by_tau.isel(tau=-1)
    with styled():
        return [_overview(given), *_of_layers(detail, "", TAUS[-1]), _changes(given), _thresholds(given)]


def log_pictures(log: xr.Dataset) -> list[Picture]:
    """Draw every picture that adopted dormancy logs allow: models and thresholds are kept apart. **Eager**.

    Parameters
    ----------
    log : (step, log, layer)
        The `dormancy` cube, or what `neurolens.units.seed_log.read_log` returns.
    """
    summary = counted(log)
    series = schema.series_dim(summary["fraction"])
    labels = [str(label) for label in summary["log"].values.tolist()]
    with styled():
        figure = new_figure((6.8, 3.6))
        dormancy_curves(summary, ax=figure.add_subplot())
        caption = f"Share of dormant units as logged: {_listed(labels)}. Nothing is averaged over logs."
        drawn = [Picture("log_dormancy", "Dormant units, adopted logs", caption, caption, figure)]
        for i, (label, slug) in enumerate(zip(labels, _slugs(labels))):
            one = summary.isel(log=i)
            one = one.isel({series: np.flatnonzero(one["fraction"].notnull().any("layer").values)})
            drawn += _of_layers(one, f"log_{slug}_", None, label)
        return drawn


def _overview(given: UnitCounts) -> Picture:
    figure = new_figure((12.4, 3.6))
    dormancy_curves(given.by_tau.isel(tau=-1), ax=figure.add_subplot(1, 2, 1))
    ax = dormancy_curves(given.by_definition, ax=figure.add_subplot(1, 2, 2))
    ax.set_title("By every definition")
    last = {
        str(name): float(given.by_definition["pooled_fraction"].sel(definition=name)[-1])
        for name in given.by_definition["definition"].values.tolist()
    }
    caption = "Of all units at the last checkpoint: " + ", ".join(f"{v:.1%} by {name}" for name, v in last.items())
    alt = f"Share of dormant units by redo, with its range over layers, and by every definition. {caption}."
    return Picture("dormancy", "Dormant units", f"{caption}.", alt, figure)


def _of_layers(summary: xr.Dataset, prefix: str, tau: float | None, label: str = "") -> list[Picture]:
    """Draw heatmap and evolution of one definition, threshold and log."""
    layers = int(summary["fraction"].notnull().any(schema.series_dim(summary["fraction"])).sum())
    figure = new_figure((SIDE[0], float(np.clip(1.7 + 0.17 * layers, 2.6, 10))))
    dormancy_heatmap(summary, ax=figure.add_subplot())
    of = f"by redo at {tau:g}" if tau is not None else f"as logged: {label}"
    worst, share = most_dormant(summary)
    most = f"most at the last checkpoint: {worst}, {share:.1%}" if share > 0 else "none at the last checkpoint"
    caption = f"Share of each layer's units that are dormant {of}; {most}."
    drawn = [Picture(f"{prefix}dormancy_heatmap", "Dormant units by layer", caption, f"Heatmap. {caption}", figure)]
    figure = new_figure(SIDE)
    dormancy_evolution(summary, ax=figure.add_subplot())
    caption = f"Share of dormant units {of}, in the layers where it varies most over the checkpoints."
    title = "Layers that change most"
    return [*drawn, Picture(f"{prefix}dormancy_evolution", title, caption, caption, figure)]


def _changes(given: UnitCounts) -> Picture:
    figure = new_figure(SIDE)
    transition_ribbons(given.changes, ax=figure.add_subplot())
    changes = given.changes
    caption = (
        f"Of {int(changes['n_units']):,} units, {int(changes['n_ever']):,} are dormant at some checkpoint by redo at "
        f"{TAUS[-1]:g}, {int(changes['n_persistent']):,} at every one; {revived_ever(changes):,} came back."
    )
    alt = f"Ribbons from checkpoint to checkpoint. {caption}"
    return Picture("transitions", "What becomes of dormant units", caption, alt, figure)


def _thresholds(given: UnitCounts) -> Picture:
    figure = new_figure(SIDE)
    threshold_curves(given.sweep, ax=figure.add_subplot())
    at = [float(given.by_tau["pooled_fraction"].sel(tau=tau)[-1]) for tau in TAUS]
    caption = f"Share of units at or below a threshold of redo. Last checkpoint: {at[0]:.1%} at {TAUS[0]:g}, "
    caption += f"{at[-1]:.1%} at {TAUS[-1]:g}."
    title = "How counts depend on the threshold"
    return Picture("thresholds", title, caption, f"A curve per checkpoint. {caption}", figure)


def spectra_pictures(found: xr.Dataset) -> list[Picture]:
    """Draw the singular values of some layers, evenly chosen, and the effective rank of all. **Eager**.

    Parameters
    ----------
    found : (series, layer)
        What `neurolens.spectra` returns.
    """
    names = [str(name) for name in found["layer"].values.tolist()]
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(PANELS, len(names))).round().astype(int))]
    rows = -(-(len(chosen) + 1) // 2)
    with styled():
        figure = new_figure((11.2, 3.4 * rows))
        for i, name in enumerate(chosen):
            singular_values(found, layer=name, ax=figure.add_subplot(rows, 2, i + 1))
        rank_curves(found, ax=figure.add_subplot(rows, 2, len(chosen) + 1))
    caption = (
        f"Singular values of the activations (sample × unit) at every checkpoint, of {_listed(chosen)}; and how many "
        "directions each layer uses: the exponential of the entropy of its spectrum."
    )
    return [Picture("spectra", "Spectra over training", caption, caption, figure)]


def drawable_spectra(activations: xr.Dataset) -> tuple[xr.Dataset | None, str]:
    """Compute the spectra of a cube, of as many checkpoints as take a minute or so, and say what was left out.

    **Eager**.

    Parameters
    ----------
    activations : (series, sample, unit)
        The activations cube. Checkpoints that were not measured are left out.

    Returns
    -------
    The spectra, and a note, empty where there is nothing to say. None where even one checkpoint is too much.
    """
    series = schema.series_dim(activations)
    if "measured" in activations.coords:
        activations = activations.isel({series: np.flatnonzero(np.asarray(activations["measured"], bool))})
    count, sizes = activations.sizes[series], activations.sizes
    if not count or "activation" not in activations:
        return None, ""
    work = sizes["sample"] * float((layers_of(activations).sizes.astype(float) ** 2).sum())
    read = sizes["sample"] * sizes["unit"] * activations["activation"].dtype.itemsize
    fit = int(min(count, WORK // max(work, 1), READ // max(read, 1)))
    if not fit:
        return None, "Spectra of so many activations are not drawn here; neurolens.spectra(ds, layers=…) computes them."
    taken = np.unique(np.linspace(0, count - 1, fit).round().astype(int))
    found = spectra(activations.isel({series: taken}), missing="drop").compute()
    note = f"Spectra are drawn of {len(taken)} of {count} checkpoints, evenly chosen." if len(taken) < count else ""
    return found, note


def revived_ever(changes: xr.Dataset) -> int:
    """Return how many units were dormant at a checkpoint and not at the next."""
    return int(changes["revived"].any("transition").sum())


def most_dormant(summary: xr.Dataset) -> tuple[str, float]:
    """Return the layer with the largest share of dormant units at the last checkpoint, and that share."""
    share = summary["fraction"]
    last = share.isel({schema.series_dim(share): -1})
    at = int(last.fillna(-1.0).argmax("layer"))
    return str(last["layer"].values.tolist()[at]), float(last[at])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _slugs(labels: list[str]) -> list[str]:
    """Return names fit for files, each once."""
    plain = ["".join(c if c.isalnum() or c in "-." else "_" for c in label) for label in labels]
    return [name if plain.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(plain)]
