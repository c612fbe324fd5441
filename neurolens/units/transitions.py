"""What becomes of dormant units from checkpoint to checkpoint."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import ModelMismatchError, SchemaError
from neurolens.units.inputs import choice, described, labels_of, listed, require_mask
from neurolens.units.layers_of import held, in_chunks, per_layer, sizes_of

IDENTITY = ("unit", "layer", "index")


def transitions(
    mask: xr.DataArray | Sequence[xr.DataArray], *, by: Literal["layer"] | None = None, dim: str | None = None
) -> xr.Dataset:
    """Follow units through the series: who stays dormant, who comes back, who is new, who never fired at all.

    Parameters
    ----------
    mask : bool (series, unit), True is dormant; further dims (definition, tau, class) are kept
        From `neurolens.dormant`, or any other. Several masks, e.g. of two stores, are put one after the other; they
        must be over the same units.
    by : "layer" or None
        Count within each layer instead of over all units.
    dim : str, optional
        The series dim; `epoch` or `step`, whichever the mask has.

    Returns
    -------
    Dataset, lazy if ``mask`` is
        With T checkpoints, `transition` is the T − 1 steps from one to the next, named by the coordinates `from_epoch`
        and `to_epoch` (or step), of which the latter can be selected by. Over units: `stay`, `revived`, `new`
        (transition, unit); `persistent`, `ever`, `first_dormant` (position in the series, −1 for never),
        `first_dormant_epoch` (its label, NaN for never) and `flips`. Counted: `n_dormant` (series), `n_stay`,
        `n_revived`, `n_new` (transition), `n_persistent`, `n_ever`, `n_units`. Overlaps (transition):
        `intersected_percent` (of those dormant before, still dormant; 0 if none was), `overlap`
        (|A ∩ B| / min(|A|, |B|); NaN where one is empty), `jaccard` (|A ∩ B| / |A ∪ B|; NaN where both are). With
        ``by="layer"`` only what is counted, and the overlaps, with a further dim `layer`.

    Raises
    ------
    SchemaError
        If the mask is not bool, or lacks the series or `unit`.
    ModelMismatchError
        If masks are over different units.

    References
    ----------
    Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", figure 4 (overlap);
    Dopamine, ``weight_recyclers`` (intersected percent).
    """
    choice("by", by or "layer", "layer")
    mask, series = _one_mask(mask, dim)
    labels = xr.DataArray(labels_of(mask, series), dims=series)
    history = _whole_series(mask, series)
    before, after = _ends(history, series)
    stay, revived, new = before & after, before & ~after, ~before & after
    persistent, ever = history.all(series), history.any(series)
    first = history.argmax(series).where(ever, -1)

    def count(flags: xr.DataArray) -> xr.DataArray:
        return per_layer(flags, "total") if by else flags.sum("unit")

    counts = {"n_dormant": count(mask), "n_persistent": count(persistent), "n_ever": count(ever)}
    n_stay, n_revived, n_new = count(stay), count(revived), count(new)
    n_before, n_after = n_stay + n_revived, n_stay + n_new
    smaller, either = np.minimum(n_before, n_after), n_stay + n_revived + n_new
    counts |= {"n_stay": n_stay, "n_revived": n_revived, "n_new": n_new}
    counts["n_units"] = sizes_of(mask) if by else xr.DataArray(mask.sizes["unit"])
    counts["intersected_percent"] = (100 * n_stay / np.maximum(n_before, 1)).where(n_before > 0, 0.0)
    counts["overlap"] = (n_stay / np.maximum(smaller, 1)).where(smaller > 0)
    counts["jaccard"] = (n_stay / np.maximum(either, 1)).where(either > 0)
    found = counts
    if by is None:
        flips = (revived | new).sum("transition")
        per_unit = {"stay": stay, "revived": revived, "new": new, "persistent": persistent, "ever": ever}
        found = per_unit | {"first_dormant": first, "flips": flips} | counts
    out = described(found, mask, series=series)
    if by is None and labels.dtype.kind in "iuf":
        of_first = _label_at(first, labels)
        out[f"first_dormant_{series}"] = of_first.assign_attrs(long_name=f"first {series} at which the unit is dormant")
    ends = {f"from_{series}": ("transition", labels.data[:-1]), f"to_{series}": ("transition", labels.data[1:])}
    return out.assign_coords(ends).set_xindex(f"to_{series}")


def _one_mask(mask: xr.DataArray | Sequence[xr.DataArray], dim: str | None) -> tuple[xr.DataArray, str]:
    masks = [mask] if isinstance(mask, xr.DataArray | xr.Dataset) else list(mask)
    if not masks:
        raise SchemaError("there is no mask; give one (series, unit), or several to put one after the other")
    for each in masks:
        require_mask(each)
    series = schema.series_dim(masks[0], dim)
    for each in masks[1:]:
        _same_units(masks[0], each, series)
    if not masks[0].sizes[series]:
        raise SchemaError(f"the mask has no {series} left to follow units over; select at least one")
    if len(masks) == 1:
        return masks[0], series
    joined = xr.concat(masks, series, join="exact", coords="minimal", compat="override", combine_attrs="drop_conflicts")
    return joined, series


def _same_units(one: xr.DataArray, other: xr.DataArray, series: str) -> None:
    schema.series_dim(other, series)
    if one.sizes["unit"] != other.sizes["unit"]:
        found = f"{one.sizes['unit']} and {other.sizes['unit']} units"
    else:
        differ = [name for name in IDENTITY if not _equal(one, other, name)]
        if not differ:
            return
        found = f"units that differ in {listed(differ)}"
    raise ModelMismatchError(
        f"the masks are over {found}; a unit can only be followed within one architecture and one choice of layers: "
        "select the same layers of both, or follow each by itself"
    )


def _equal(one: xr.DataArray, other: xr.DataArray, name: str) -> bool:
    here, there = name in one.coords, name in other.coords
    if not here or not there:
        return here == there
    return bool(np.array_equal(held(one.coords[name]), held(other.coords[name])))


def _whole_series(mask: xr.DataArray, series: str) -> xr.DataArray:
    return mask if mask.chunks is None else in_chunks(mask, series)


def _ends(history: xr.DataArray, series: str) -> tuple[xr.DataArray, xr.DataArray]:
    bare = history.drop_vars([name for name, coord in history.coords.items() if series in coord.dims])
    ends = bare.isel({series: slice(None, -1)}), bare.isel({series: slice(1, None)})
    before, after = (end.rename({series: "transition"}) for end in ends)
    return before, after


def _label_at(first: xr.DataArray, labels: xr.DataArray) -> xr.DataArray:
    known = np.append(labels.data.astype(np.float64), np.nan)  # position −1 is never: NaN
    found: xr.DataArray = xr.apply_ufunc(known.__getitem__, first, dask="parallelized", output_dtypes=[np.float64])
    return found
