"""Encodings: how activations are stored, where that is not as the schema declares."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numcodecs import BitRound
from zarr.codecs import BloscCodec, ZstdCodec

from neurolens import schema
from neurolens.errors import SchemaError, nearest

KEPT_BITS = 10  # of the mantissa, as many as float16 has: the relative error is at most 2⁻¹¹
ENCODINGS: Mapping[str, str] = {"float16": "float16", f"float32-bitround{KEPT_BITS}": "float32"}
"""The stored dtype of each encoding. float16 is raw; the other is rounded, and compressed (lz4, bitshuffled)."""


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
    if encoding is not None and encoding != "float16":
        return (BloscCodec(cname="lz4", shuffle="bitshuffle"),)
    raw = dtype != "string" and np.dtype(dtype).kind == "f"
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
            f"{name!r} has values beyond the range of {dtype} (±{np.finfo(dtype).max:g}); "
            f"store it as 'float32-bitround{KEPT_BITS}'"
        ) from None
    if encoding is None or encoding == "float16":
        return cast
    rounded: np.ndarray = np.asarray(BitRound(KEPT_BITS).encode(cast)).view(dtype)
    return rounded
