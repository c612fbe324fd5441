"""What codes say, and what they add up to."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.sparse_codes.dictionaries import Norm, prepared

Array = npt.NDArray[Any]


def describe(codes: xr.Dataset, phrases: Any = None, *, top: int | None = None) -> xr.Dataset:
    """Name the phrases of codes, those with the largest coefficients first. **Eager**.

    Parameters
    ----------
    codes
        As `sparse_codes` and `lasso_codes` return them, or a selection of them; or what a store holds of them,
        ``neurolens.open_run(url)["codes"].to_dataset()`` or `neurolens.pairs.codes_at`.
    phrases
        Names in the order of the dictionary; or the dictionary itself, if it has them as its coordinate ``phrase``. By
        default the coordinate ``phrase`` of the codes, which those of a store have.
    top
        So many phrases of each; all by default.

    Returns
    -------
    Dataset
        ``phrase`` (…, atom) and its ``value`` (…, atom), ordered by |value|; ``""`` and NaN where a code has fewer.

    Raises
    ------
    SchemaError
        If these are no codes, or there are other phrases than the codes are of.
    """
    found = checked_codes(codes)
    names = names_of(found, phrases)
    value, index = found["value"].to_numpy(), found["index"].to_numpy()
    order = np.argsort(np.where(index < 0, np.inf, -np.abs(value)), axis=-1, kind="stable")
    if top is not None:
        if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 1:
            raise SchemaError(f"found top={top!r}, and a whole number of at least 1 was needed")
        order = order[..., :top]
    words = np.asarray([*names, ""], dtype=object)[np.take_along_axis(index, order, axis=-1)]
    dims = found["value"].dims
    coords = {name: coord for name, coord in found["value"].coords.items() if "atom" not in coord.dims}
    return xr.Dataset(
        {
            "phrase": (dims, words, {"long_name": "phrase of the dictionary"}),
            "value": (dims, np.take_along_axis(value, order, axis=-1), dict(found["value"].attrs)),
        },
        coords=coords,
    )


def reconstruct(codes: xr.Dataset, dictionary: Any, *, unit: bool = False) -> xr.DataArray:
    """Return what codes add up to: Σ value · atom.

    Parameters
    ----------
    codes
        As `sparse_codes` and `lasso_codes` return them, or a store holds them, or a selection; lazy if they are.
    dictionary : (phrase, feature)
        The embeddings that they were made of: atoms are prepared as the codes' attributes say.
    unit
        Divide each by its length, as the reference does before it replaces directions by codes.

    Returns
    -------
    array (…, feature)
        In the unit of the signals. Where a code is empty, 0, and NaN with ``unit``.

    Raises
    ------
    SchemaError
        If these are no codes, or the dictionary has other phrases than the codes are of.
    """
    found = checked_codes(codes)
    norm: Norm = None if found.attrs["norm"] == "none" else found.attrs["norm"]
    atoms = prepared(dictionary, norm=norm, centre=bool(found.attrs["centred"]))
    _require_same(found, atoms.sizes["phrase"])
    dtype = np.result_type(found["value"].dtype, atoms.dtype)
    arrays = [found[name].chunk({"atom": -1}) if found[name].chunks else found[name] for name in ("index", "value")]
    out: xr.DataArray = xr.apply_ufunc(
        _summed,
        *arrays,
        atoms.drop_vars(list(atoms.coords)),
        kwargs={"unit": unit, "dtype": dtype},
        input_core_dims=[["atom"], ["atom"], ["phrase", "feature"]],
        output_core_dims=[["feature"]],
        dask="parallelized",
        output_dtypes=[dtype],
    )
    return out.rename("reconstruction").assign_attrs(long_name="sum of the atoms of a code", units="embedding")


def _summed(index: Array, value: Array, atoms: Array, *, unit: bool, dtype: Any) -> Array:
    from scipy.sparse import csr_array

    count = index.shape[-1]
    flat, weights = index.reshape(-1, count), np.where(index < 0, 0, value).reshape(-1, count)
    held = csr_array(
        (weights.ravel().astype(dtype), np.maximum(flat, 0).ravel(), np.arange(len(flat) + 1) * count),
        shape=(len(flat), len(atoms)),
    )
    out: Array = np.asarray(held @ atoms.astype(dtype))
    if unit:
        lengths = np.linalg.norm(out, axis=1, keepdims=True)
        out = np.where(lengths > 0, out / np.where(lengths > 0, lengths, 1), np.nan).astype(dtype)
    return out.reshape(*index.shape[:-1], atoms.shape[1])


def checked_codes(codes: Any) -> xr.Dataset:
    """Return index, integer and -1 for none, and value (…, atom), with how atoms were made as attributes.

    Raises
    ------
    SchemaError
        If these are no codes, or do not say how their atoms were made.
    """
    if not isinstance(codes, xr.Dataset) or not {"index", "value"} <= set(codes) or "atom" not in codes["index"].dims:
        found = sorted(map(str, codes)) if isinstance(codes, xr.Dataset) else type(codes).__name__
        raise SchemaError(
            f"found {found}, and a Dataset of index and value (…, atom) was needed, as sparse_codes gives"
        )
    attrs = {**_stored(codes), **codes.attrs}
    lacking = {"norm", "centred", "phrases"} - set(attrs)
    if lacking:
        raise SchemaError(
            f"these codes have no attribute {sorted(lacking)[0]!r}, and it says how their atoms were made; keep the "
            "attributes of what sparse_codes returns"
        )
    out = codes[["index", "value"]].transpose(..., "atom").assign_attrs(attrs)
    if out["index"].dtype.kind == "f":  # as an opened store has it
        out["index"] = out["index"].fillna(-1).astype(np.int32)
    return out.assign_coords(phrase=codes["phrase"]) if "phrase" in codes.coords else out


def names_of(codes: xr.Dataset, phrases: Any = None) -> Sequence[str]:
    """Return the names of the phrases that codes are of: those given, or their own.

    Raises
    ------
    SchemaError
        If there are none, or not as many as the codes are of.
    """
    if phrases is None:
        if "phrase" not in codes.coords:
            raise SchemaError("these codes do not name their phrases; give the names, in the order of the dictionary")
        phrases = codes["phrase"]
    names = _names(phrases)
    _require_same(codes, len(names))
    return names


def _stored(codes: xr.Dataset) -> dict[str, Any]:
    """Return how the atoms of the codes of a store were made; nothing of others."""
    if codes.attrs.get("cube") != "codes" or "phrase" not in codes.coords:
        return {}
    settings = json.loads(codes.attrs.get("settings", "{}")).get("parts", {}).get("codes", {})
    known = {"norm": settings["norm"]} if "norm" in settings else {}
    return {**known, "centred": 1, "phrases": codes.sizes["phrase"]}


def _require_same(codes: xr.Dataset, phrases: int) -> None:
    if codes.attrs["phrases"] != phrases:
        raise SchemaError(f"found {phrases} phrases, and the codes are of {codes.attrs['phrases']}; give the same ones")


def _names(phrases: Any) -> Sequence[str]:
    if isinstance(phrases, xr.DataArray) and "phrase" in phrases.dims:
        if "phrase" not in phrases.coords:
            raise SchemaError("the dictionary does not name its phrases; give their names, in its order")
        return [str(name) for name in phrases["phrase"].to_numpy()]
    if isinstance(phrases, str):
        raise SchemaError(f"found one text, {phrases[:40]!r}, and a list of phrases was needed")
    return [str(name) for name in phrases]
