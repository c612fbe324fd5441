"""What units detect: detectors by category over training, and against the null of rotated units."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from neurolens import schema
from neurolens.dissection import detectors
from neurolens.dissection.overlap import Reading
from neurolens.errors import SchemaError, nearest
from neurolens.plot.style import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MARKERS,
    VERMILLION,
    cut,
    empty,
    new_axes,
    percent_axis,
    series_axis,
    styled,
)
from neurolens.units.layers_of import held

FEW = 40
"""Up to how many checkpoints each is marked on its line."""
QUANTITIES = {"n_detectors": "units that detect a concept", "n_unique": "different concepts detected"}
TAU = 0.04


def detector_curves(
    data: xr.Dataset | xr.DataArray,
    *,
    quantity: str = "n_detectors",
    tau: float = TAU,
    reading: Reading = "paper",
    dim: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many units detect a concept, or how many different concepts are, by category over the series. **Eager**.

    Parameters
    ----------
    data : (series, category)
        What `neurolens.detectors` returns; or the concepts cube or IoU, whose detectors are then counted; or adopted
        tallies.
    quantity : {"n_detectors", "n_unique"}
    tau, reading
        As for `neurolens.detectors`, where detectors are counted here.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever there is.

    Raises
    ------
    SchemaError
        If the quantity is unknown, or there is nothing to count.
    """
    if quantity not in QUANTITIES:
        raise SchemaError(f"quantity={quantity!r} is unknown; {nearest(quantity, QUANTITIES)}")
    found = (data if isinstance(data, xr.Dataset) and quantity in data else counted(data, tau, reading)).compute()
    series = schema.series_dim(found[quantity], dim)
    at = np.asarray(found[series]) if series in found.coords else np.arange(found.sizes[series])
    names = [str(name) for name in held(found["category"]).tolist()]
    values = np.asarray(found[quantity].transpose("category", series), np.float64)
    total = np.asarray(found["total_detectors" if quantity == "n_detectors" else "total_unique"], np.float64)
    with styled():
        ax = new_axes(ax, size=(6.4, 3.6))
        tau = float(found.attrs.get("iou_tau", tau))
        ax.set_title(f"{'Detectors' if quantity == 'n_detectors' else 'Unique detectors'}: IoU of {tau:g}")
        ax.set_ylabel(QUANTITIES[quantity])
        series_axis(ax, at, series)
        if not np.nansum(total):
            return empty(ax, f"no unit reaches an IoU of {tau:g}\nat any of {len(at):,} checkpoints")
        size = 4 if len(at) <= FEW else 0
        some = np.nansum(values, axis=1) > 0
        for i, name in enumerate(names):
            if some[i]:
                look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
                look |= {} if len(at) <= FEW else {"linewidth": 1.2, "marker": ""}
                ax.plot(at, values[i], markersize=size, label=cut(name, 20), **look)
        if some.sum() > 1:
            dots = {"marker": "."} if len(at) == 1 else {}
            ax.plot(at, total, color=INK, linestyle=(0, (4, 2)), linewidth=1.3, label="all", **dots)  # type: ignore[arg-type]
        none = [name for name, any_ in zip(names, some) if not any_]
        if none:
            ax.plot([], [], linestyle="none", label=_lines(["none:", *none]))
        ax.set_ylim(0, None)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return ax


def rotation_null(
    score: xr.DataArray | xr.Dataset,
    rotated: xr.DataArray,
    *,
    tau: float = TAU,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of units with at least so high a best IoU, against that of randomly rotated units. **Eager**.

    Rotating the units of a layer at random keeps what the layer can tell apart, and takes away what single units do: as
    many detectors as after rotation are there by chance. The band reaches from the lowest to the highest rotation.

    Parameters
    ----------
    score : (unit,), or a Dataset of it
        IoU of each unit with its best concept, at one checkpoint.
    rotated : (rotation, unit)
        `rotated_score` of the concepts cube, at the same checkpoint and in the same reading.
    tau : float
        Threshold of a detector.

    Raises
    ------
    SchemaError
        If dims are others.

    References
    ----------
    Bau et al. 2017, section 3.2.
    """
    plain = score["score"] if isinstance(score, xr.Dataset) else score
    if plain.dims != ("unit",) or set(rotated.dims) != {"rotation", "unit"}:
        raise SchemaError(
            f"found dims {plain.dims} and {rotated.dims}; needed (unit,) and (rotation, unit): select one checkpoint "
            "with isel(epoch=-1)"
        )
    own = np.asarray(plain, np.float64)
    null = np.asarray(rotated.transpose("rotation", "unit"), np.float64)
    with styled():
        ax = new_axes(ax, size=(6.4, 3.6))
        ax.set_title("Units against randomly rotated units")
        ax.set_xlabel("IoU with the best concept")
        ax.set_ylabel("share of units with at least that")
        known = own[np.isfinite(own)]
        null = null[np.isfinite(null).any(axis=1)]
        if not len(known) or not len(null):
            return empty(ax, "no rotation was measured here" if len(known) else "no unit has a score")
        x = np.linspace(0, max(float(known.max()), float(np.nanmax(null)), 1.5 * tau) * 1.02, 400)
        curves = np.stack([_at_least(row[np.isfinite(row)], x) for row in null])
        ax.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=GREY, alpha=0.3, linewidth=0)
        above = (null >= tau).sum(axis=1)
        spread = f"{above.min():,}–{above.max():,}" if above.min() < above.max() else f"{above.min():,}"
        times = f"{len(null)} rotation{'s' * (len(null) > 1)}"
        ax.plot(x, curves.mean(axis=0), color=GREY, linestyle=(0, (4, 2)), label=f"{times}: {spread} detectors")
        ax.plot(x, _at_least(known, x), color=BLUE, label=f"units: {int((known >= tau).sum()):,} detectors")
        ax.axvline(tau, color=VERMILLION, linewidth=0.9, linestyle=":")
        note: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate(f"tau = {tau:g}", (tau, 1), (3, -2), va="top", fontsize=8, color=VERMILLION, **note)
        percent_axis(ax.yaxis)
        ax.set_xlim(0, x[-1])
        ax.set_ylim(0, 1.02)
        handles = ax.get_legend_handles_labels()
        ax.legend(handles[0][::-1], handles[1][::-1], loc="upper right")
        return ax


def counted(data: xr.Dataset | xr.DataArray, tau: float, reading: Reading) -> xr.Dataset:
    """Count detectors of a cube, of IoU, or of the best concepts that adopted tallies know."""
    if isinstance(data, xr.DataArray) or "intersection" in data:
        return detectors(data, tau=tau, reading=reading)
    if "iou" in data and "concept_category" in data["iou"].coords:
        return detectors(data["iou"], tau=tau)
    lacking = [name for name in ("score", "label", "label_category") if name not in data]
    if lacking:
        found = ", ".join(map(str, data.data_vars)) or "nothing"
        raise SchemaError(f"the Dataset holds {found}; detectors need counts, IoU, or score, label and label_category")
    return _of_labels(data, tau)


def _of_labels(data: xr.Dataset, tau: float) -> xr.Dataset:
    series = schema.series_dim(data["score"])
    best = data[["score", "label", "label_category"]].transpose(series, "unit").compute()
    above = np.asarray(best["score"], np.float64) >= tau
    label, of = (np.asarray(held(best[name]).tolist(), str) for name in ("label", "label_category"))
    kinds = sorted({k for k in of[above].tolist() if k} or {k for k in of.ravel().tolist() if k})
    shape = (len(above), len(kinds))
    count, unique = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for t, row in enumerate(above):
        for k, kind in enumerate(kinds):
            here = row & (of[t] == kind) & (label[t] != "")
            count[t, k], unique[t, k] = here.sum(), len(set(label[t][here].tolist()))
    dims = (series, "category")
    coords = {"category": np.asarray(kinds, object)} | ({series: best[series]} if series in best.coords else {})
    out = xr.Dataset({"n_detectors": (dims, count), "n_unique": (dims, unique)}, coords, attrs={"iou_tau": tau})
    return out.assign(total_detectors=out["n_detectors"].sum("category"), total_unique=out["n_unique"].sum("category"))


def _at_least(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the share of values of at least x."""
    return 1 - np.searchsorted(np.sort(values), x, side="left") / len(values)


def _lines(words: list[str], room: int = 18) -> str:
    """Break words into lines: those after the first are separated by commas."""
    lines = [words[0]]
    for i, word in enumerate(words[1:]):
        piece = word + ("," if i < len(words) - 2 else "")
        if len(lines[-1]) + 1 + len(piece) > room:
            lines.append(piece)
        else:
            lines[-1] += f" {piece}"
    return "\n".join(lines)
