"""Tables of the reference's dissection, one per checkpoint and layer, read into trajectories.

Such a table knows the best concept per unit and category, and nothing of the others.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from neurolens.dissection.adopted import concept_names, from_cube, spread_codes
from neurolens.errors import DataError, nearest
from neurolens.mortality.tally_files import FIGURES, Tally, read_table, require_alike
from neurolens.mortality.tally_places import Place, file_of, layers_in, places_in
from neurolens.units.inputs import choice, listed

__all__ = ["from_cube", "read_tallies"]


def read_tallies(
    folder: str | os.PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    order: Sequence[str] | Mapping[str, int] | None = None,
    pattern: str | None = None,
    dim: Literal["epoch", "step"] | None = None,
    mismatched: Literal["error", "nan"] = "error",
    differing: Literal["error", "keep"] = "error",
) -> xr.Dataset:
    """Read a tree of `tally.csv`, one folder per checkpoint, into trajectories that can be followed.

    Parameters
    ----------
    folder
        Holds ``<checkpoint>/<layer>/tally.csv`` or ``<checkpoint>/tally.csv``.
    layers
        Layers to read, in order; absent: all folders with a table that there are, in natural order. A table without a
        folder of a layer says not which layer it is of: name that one layer.
    order
        Folders of the checkpoints in order, numbered 0, 1, …; or their positions by name.
    pattern
        What the folders are called, with ``{epoch}`` or ``{step}`` or both, which stand for digits. Others are passed
        over. Absent, with no ``order``: names as the reference writes them, ``epoch_0``, ``epoch_0_iter_300`` or
        ``iter_300``, all of one kind; any other name is refused and not guessed.
    dim
        What the positions are. Absent: the step where names have one, else the epoch.
    mismatched
        Where an IoU is not intersect / (activation + truth − intersect): raise, or read that cell as NaN.
    differing
        Where tables are of other concepts, having other categories or another area of the same concept: raise, or
        keep them in one series, as what was counted by threads that trod on each other needs it.

    Returns
    -------
    Dataset (series, unit)
        `score`, `label` and `label_category` of each unit's best concept, as in the table; with tables that have
        columns per category also `best_label`, `truth`, `activation`, `intersect`, `best_iou` (series, unit, category),
        and `iou` (series, unit, concept), lazy: NaN for all but the best concept of each category, so that a concept
        that another displaces ends as *displaced*, never as a death. A nameless concept (label 0) has no IoU.
        Coordinates `layer` and `index`, the reference's unit − 1, (unit), `checkpoint` (series), `concept_category`
        (concept).

    Raises
    ------
    DataError
        If there is no table, names are ambiguous, a table lacks columns, units or layers that others have, tables are
        of other concepts, or a number is none or contradicts the others.

    References
    ----------
    Bau et al. 2017, "Network Dissection"; columns as of NetDissect-Lite.
    """
    choice("mismatched", mismatched, "error", "nan")
    choice("differing", differing, "error", "keep")
    root = Path(folder)
    if not root.is_dir():
        near = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        raise DataError(f"{root}: there is no such folder; {nearest(root.name, near)}")
    places, series = places_in(root, order, pattern, dim)
    names = layers_in(places, layers)
    read = [[read_table(file_of(place.path, layer, names), mismatched) for layer in names] for place in places]
    if differing == "error":
        tables = [(f"{p.path.name} of {name}", t) for p, row in zip(places, read) for name, t in zip(names, row)]
        require_alike(tables)
    out = _together(root, places, series, names, read)
    return out if differing == "error" else out.assign_attrs(differing=differing)


def _together(
    root: Path, places: Sequence[Place], series: str, layers: Sequence[str], read: Sequence[Sequence[Tally]]
) -> xr.Dataset:
    units = [sorted({int(u) for row in read for u in row[i].unit}) for i in range(len(layers))]
    offset = np.cumsum([0, *map(len, units)])
    categories = list(dict.fromkeys(c for row in read for tally in row for c in tally.categories))
    shape = (len(places), int(offset[-1]))
    text = {name: np.full(shape, "", dtype=object) for name in ("label", "category")}
    score = np.full(shape, np.nan)
    best_label = np.full((*shape, len(categories)), "", dtype=object)
    figures = {f: np.full((*shape, len(categories)), np.nan) for f in FIGURES}
    for t, row in enumerate(read):
        for i, tally in enumerate(row):
            if len(tally.unit) != len(units[i]):
                lost = sorted(set(units[i]) - set(tally.unit.tolist()))
                raise DataError(
                    f"{places[t].path.name} has no unit {listed(lost)} of layer {layers[i]!r}, which other checkpoints "
                    "have; export it again, or leave that checkpoint out of the order"
                )
            at = offset[i] + np.searchsorted(units[i], tally.unit)
            score[t, at], text["label"][t, at], text["category"][t, at] = tally.score, tally.label, tally.category
            where = [categories.index(c) for c in tally.categories]
            best_label[t, at[:, None], where] = tally.labels
            for name in FIGURES:
                figures[name][t, at[:, None], where] = tally.figures[name]
    string = np.dtypes.StringDType()
    coords: dict[str, Any] = {
        series: [p.position for p in places],
        "unit": np.arange(shape[1]),
        "layer": ("unit", np.repeat(np.asarray(layers, string), np.diff(offset))),
        "index": ("unit", np.concatenate(units).astype(np.int64) - 1),
        "checkpoint": (series, np.asarray([p.path.name for p in places], string)),
    }
    if all(p.other is not None for p in places):
        coords["epoch" if series == "step" else "step"] = (series, [p.other for p in places])
    here, per = (series, "unit"), (series, "unit", "category")
    out = xr.Dataset({"score": (here, score)}, coords, attrs={"imported_from": str(root)})
    for name, values in text.items():
        out["label_category" if name == "category" else name] = (here, values.astype(string))
    if categories:
        out = out.assign_coords(category=np.asarray(categories, string))
        out["best_label"] = (per, best_label.astype(string))
        for name in FIGURES:
            out["best_iou" if name == "iou" else name] = (per, figures[name])
        out["iou"] = _iou(out, best_label, categories)
    return out


def _iou(out: xr.Dataset, best_label: Any, categories: Sequence[str]) -> xr.DataArray:
    """Return (series, unit, concept) of the best per category; a name that two categories share is two concepts."""
    pairs = sorted({(c, name) for i, c in enumerate(categories) for name in best_label[..., i].ravel() if name})
    number = {pair: i for i, pair in enumerate(pairs)}
    codes = np.full(best_label.shape, -1)
    for i, c in enumerate(categories):
        column = best_label[..., i]
        codes[..., i] = [[number.get((c, name), -1) for name in row] for row in column]
    iou = out["best_iou"].reset_coords(drop=True)
    spread = spread_codes(iou.drop_vars("category", errors="ignore"), iou.copy(data=codes), concept_names(pairs))
    category = np.asarray([c for c, _ in pairs], np.dtypes.StringDType())
    return spread.assign_coords(concept_category=("concept", category))
