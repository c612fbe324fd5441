"""What codes say, and what they add up to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import SchemaError
from neurolens.sparse_codes.dictionaries import Norm, prepared

Array = npt.NDArray[Any]


def describe(codes: xr.Dataset, phrases: Any, *, top: int | None = None) -> xr.Dataset:
    """Name the phrases of codes, those with the largest coefficients first. **Eager**.

    Parameters
    ----------
    codes
        As `sparse_codes` and `lasso_codes` return them, or a selection of them.
    phrases
        Names in the order of the dictionary; or the dictionary itself, if it has them as its coordinate ``phrase``.
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
    found = _required(codes)
    names = _names(phrases)
    _require_same(found, len(names))
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
        As `sparse_codes` and `lasso_codes` return them, or a selection of them; lazy if they are.
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
    found = _required(codes)
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


def _required(codes: Any) -> xr.Dataset:
    if not isinstance(codes, xr.Dataset) or not {"index", "value"} <= set(codes) or "atom" not in codes["index"].dims:
        found = sorted(map(str, codes)) if isinstance(codes, xr.Dataset) else type(codes).__name__
        raise SchemaError(
            f"found {found}, and a Dataset of index and value (…, atom) was needed, as sparse_codes gives"
        )
    lacking = {"norm", "centred", "phrases"} - set(codes.attrs)
    if lacking:
        raise SchemaError(
            f"these codes have no attribute {sorted(lacking)[0]!r}, and it says how their atoms were made; keep the "
            "attributes of what sparse_codes returns"
        )
    return codes[["index", "value"]].transpose(..., "atom")


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
