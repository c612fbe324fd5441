"""Files of the reference: directions, norms and means of all pairs, the mask of those kept, phrases and codes."""

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens import schema
from neurolens.attribution.exported_folder import ABOUT, draft_of, folder_at, require_free
from neurolens.errors import MissingMeasurementError, NonFiniteError
from neurolens.pairs.ablation import percentile_mask
from neurolens.pairs.norms import contributions, directions, mean_scalars, pair_norms
from neurolens.pairs.opened import at, codes_at
from neurolens.pairs.text_files import written_sets
from neurolens.sparse_codes import write_code_files

Array = npt.NDArray[Any]
PC0, NORMS, MEANS, MASK = "pc0.npy", "norms.npy", "means.npy", "mask.npy"
NAMED = 10
"""How many tied and dead pairs are named; all are counted."""


class Exported(NamedTuple):
    """What was written: the folder, its files, and what to know of them."""

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export_pairs(
    run: str | os.PathLike[str] | xr.Dataset | xr.DataTree,
    folder: str | os.PathLike[str],
    *,
    epoch: int | None = None,
    step: int | None = None,
    percentile: float = 90,
    top: int = 50,
    sign: Literal["u", "majority"] = "majority",
    words: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write one checkpoint's pairs in the files that the reference's scripts read. **Eager**, a head at a time.

    Parameters
    ----------
    run, epoch, step
        As of `at`.
    folder
        To be made; it is there as a whole, or not at all.
    percentile
        Of the mask: pairs whose mean norm is at least this percentile are kept.
    top
        How many of the largest centred contributions count for signs and norms; the reference has 50.
    sign
        ``"majority"``, the reference's rule; ``"u"``, what a unit adds when it fires.
    words
        So many phrases of each pair's code in ``text_descs.json``; all by default.
    overwrite
        Replace what an export wrote there.

    Returns
    -------
    Exported
        The folder, its files and notes. With H heads, C units and O features: ``pc0.npy`` (H, C, O) float32, directions
        of length 1; ``norms.npy`` (H, C, top) float32, increasing; ``means.npy`` (H, C, O) float32, s̄·u + β;
        ``mask.npy`` (H, C) bool. ``text_embeddings_SET.pt`` (phrases, O) and ``text_embeddings_SET.txt``, the phrases
        themselves, of each set of texts. ``decomposition.npz`` and ``text_descs.json``, where there are codes; see
        `sparse_codes.write_code_files`. ``export.json`` says what was exported, and which signs are no one's.

    Raises
    ------
    MissingMeasurementError, MissingCheckpointError, StoreError
        As of `at`; or if there are neither scalars nor totals.
    SchemaError
        If there are fewer images than ``top``, or extremes in the totals; or the percentile or sign is none.
    NonFiniteError
        If a scalar is NaN.
    DataError
        If there is something in the folder's place, or it cannot be written.

    Notes
    -----
    Where neither sign has more than half of the images, the reference's is what LAPACK happens to return: here it is
    that of u. Where u is 0 it keeps a vector of rounding: here it is 0, which adds nothing to a reconstruction either.

    References
    ----------
    Bu and Gandelsman 2025, arXiv 2509.19943: the files of their code.
    """
    target = folder_at(folder)
    require_free(target, overwrite)
    data = at(run, epoch=epoch, step=step)
    if "scalar" not in data and "mean" not in data:
        raise MissingMeasurementError(
            "there are neither scalars nor totals; measure them: `neurolens run STUDY --only pools` with totals = true "
            "in [pools], or --only pairs"
        )
    fixed = data[["value", "output", "constant"]].compute()
    data = data.assign(fixed.data_vars)
    found = directions(fixed, sign=sign, scalar=data, top=top)
    # Together, for all of them go through the scalars.
    of_pairs = {"norm": pair_norms(data, fixed, top=top), "sign": found["sign"], "mean": mean_scalars(data, fixed)}
    known = xr.Dataset(of_pairs).compute()
    norms, signs = known["norm"], known["sign"]
    if not np.isfinite(norms).all():
        raise NonFiniteError("a pair has norms of NaN: a scalar was not measured; `neurolens status STUDY` says which")
    keep = percentile_mask(norms, percentile)
    dead = found["dead"]
    tied = (signs == 0) & ~dead
    # Signs that are no one's are those of u.
    direction = directions(fixed)["direction"] * signs.where(signs != 0, 1).astype(np.float32)
    means = contributions(known["mean"], fixed)
    names = [PC0, NORMS, MEANS, MASK]
    with draft_of(target) as draft:
        _write(draft / PC0, direction.fillna(0))
        _write(draft / MEANS, means)
        np.save(draft / NORMS, norms.transpose("head", "unit", "rank").to_numpy().astype(np.float32))
        np.save(draft / MASK, keep.transpose("head", "unit").to_numpy())
        names += [path.name for path in written_sets(data, draft)] if "text" in data else []
        names += _write_codes(run, data, draft, signs, words)
        notes = _notes(tied, dead, sign, top)
        told = {
            "files": names,
            "percentile": percentile,
            "top": top,
            "sign": sign,
            "threshold": float(np.percentile(norms.mean("rank").to_numpy(), percentile)),
            "kept": int(keep.sum()),
            "images": int(data["count"]) if "scalar" not in data else data.sizes["sample"],
            "negative": int((signs < 0).sum()),
            "tied": _listed(tied),
            "dead": _listed(dead),
            "notes": list(notes),
        }
        told |= {name: int(data[name]) for name in schema.SERIES_DIMS if name in data.coords}
        told |= {key: data.attrs[key] for key in ("run", "snapshot") if key in data.attrs}
        text = json.dumps(told, indent=2, ensure_ascii=False)
        (draft / ABOUT).write_text(text + "\n", encoding="utf-8")
    return Exported(target, (*names, ABOUT), notes)


def _write(file: Path, array: xr.DataArray) -> None:
    """Write (unit, head, feature) as (head, unit, feature) float32, a head at a time."""
    sizes = tuple(array.sizes[dim] for dim in ("head", "unit", "feature"))
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=sizes)
    for head in range(sizes[0]):
        out[head] = array.isel(head=head).transpose("unit", "feature").to_numpy()
    out.flush()


def _write_codes(run: Any, data: xr.Dataset, draft: Path, signs: xr.DataArray, words: int | None) -> list[str]:
    """Write the codes of the checkpoint, if there are; of the same snapshot."""
    series = str(data.attrs.get("series", ""))
    if series not in data.coords:
        return []
    # What is opened beside a Dataset is of its snapshot.
    source = xr.Dataset(attrs=data.attrs | {"cube": "samples"}) if "url" in data.attrs else run
    try:
        codes = codes_at(source, **{series: int(data[series])})
    except MissingMeasurementError:  # none were asked for, or not at this checkpoint
        return []
    both = ("unit", "head")
    if any(codes.sizes[dim] != signs.sizes[dim] for dim in both):
        codes = codes.sel({dim: signs[dim].to_numpy() for dim in both})
    return list(write_code_files(codes, draft, sign=signs, top=words))


def _notes(tied: xr.DataArray, dead: xr.DataArray, sign: str, top: int) -> tuple[str, ...]:
    notes = []
    if sign == "majority" and tied.any():
        notes.append(
            f"{int(tied.sum())} of {tied.size} pairs have no majority among their {top} largest images: their sign is "
            f"that of u, and in the reference what LAPACK returns ({', '.join(_listed(tied)['first'])})"
        )
    if dead.any():
        notes.append(
            f"{int(dead.sum())} pairs have a vector of 0: their direction is written as 0, and is rounding in the "
            f"reference ({', '.join(_listed(dead)['first'])})"
        )
    return tuple(notes)


def _listed(mask: xr.DataArray) -> dict[str, Any]:
    """Return how many pairs are in a mask, and the ids of the first, head by head."""
    ordered = mask.transpose("head", "unit")
    labels = [ordered[d].to_numpy() if d in ordered.coords else np.arange(ordered.sizes[d]) for d in ordered.dims]
    heads, units = np.nonzero(ordered.to_numpy())
    named = [f"u{labels[1][unit]}/h{labels[0][head]}" for head, unit in zip(heads[:NAMED], units[:NAMED], strict=True)]
    return {"count": len(heads), "first": named}
