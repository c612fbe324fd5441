"""Encodings: how numbers are stored, where that is not as the schema declares."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from zarr.codecs import BloscCodec, ZstdCodec

from neurolens import schema
from neurolens.errors import SchemaError, nearest

KEPT_BITS = 10  # of the mantissa, as many as float16 has: the relative error is at most 2⁻¹¹
SCRATCH = 2**16  # values rounded at a time, to stay in the processor's cache
ROUNDED, SPARSE = f"float32-bitround{KEPT_BITS}", ("float64-zstd", "float32-zstd")
ENCODINGS: Mapping[str, str] = {
    "float16": "float16",
    ROUNDED: "float32",
    **{name: name.removesuffix("-zstd") for name in SPARSE},
}
"""The stored dtype of each encoding. float16 is raw; ``ROUNDED`` is rounded and compressed (lz4, bitshuffled);
those of ``SPARSE``, for what is NaN nearly everywhere, are compressed without loss."""


def stored_dtype(variable: schema.Variable, encoding: str | None) -> np.dtype[Any]:
    """Return the dtype that a variable is stored in.

    Raises
    ------
    SchemaError
        If there is no such encoding, or the variable is not of floats.
    """
    if encoding is None:
        return np.dtype(variable.dtype)
    if encoding not in ENCODINGS:
        raise SchemaError(f"there is no encoding {encoding!r} for {variable.name!r}; {nearest(encoding, ENCODINGS)}")
    if np.dtype(variable.dtype).kind != "f":
        raise SchemaError(f"{variable.name!r} is {variable.dtype}, and {encoding!r} stores floats; leave it out")
    return np.dtype(ENCODINGS[encoding])


def compressors(dtype: str, encoding: str | None) -> tuple[Any, ...] | None:
    """Return the compressors of an array: floats are noise to them, unless rounded; all else is lightly compressed."""
    if encoding == ROUNDED:
        return (BloscCodec(cname="lz4", shuffle="bitshuffle"),)
    raw = dtype != "string" and np.dtype(dtype).kind == "f" and encoding not in SPARSE
    return None if raw else (ZstdCodec(level=1),)


def encoded(values: np.ndarray, dtype: np.dtype[Any], encoding: str | None, name: str) -> np.ndarray:
    """Return values as they are stored: cast, and rounded where the encoding says so.

    The rounding is done here, and the array's codecs are those that every reader of Zarr v3 has.

    Raises
    ------
    SchemaError
        If the dtype does not fit, or finite values are beyond the range of the stored dtype.
    """
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise SchemaError(f"{name!r} is {values.dtype}, which does not fit into {dtype}")
    try:
        with np.errstate(over="raise"):
            cast = values.astype(dtype, copy=False)
    except FloatingPointError:
        raise SchemaError(
            f"{name!r} has values beyond the range of {dtype} (±{np.finfo(dtype).max:g}); store it as {ROUNDED!r}"
        ) from None
    return rounded(cast) if encoding == ROUNDED else cast


def rounded(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest with ``KEPT_BITS`` of mantissa, ties to even. NaN and infinities stay.

    As numcodecs' BitRound, which makes −0 of the NaN that CUDA computes (all bits set but the sign's).
    """
    dropped = np.int32(23 - KEPT_BITS)
    half, mask = np.int32((1 << (dropped - 1)) - 1), np.int32(-1 << dropped)
    out = np.array(values, np.float32, order="C")
    flat = out.reshape(-1)
    for start in range(0, flat.size, SCRATCH):
        part = flat[start : start + SCRATCH]
        missing, bits = np.isnan(part), part.view(np.int32)
        tie = bits >> dropped
        tie &= 1
        tie += half
        bits += tie
        bits &= mask
        if missing.any():
            part[missing] = np.nan
    return out
