"""Where the tensors of a safetensors file lie, by its header.

Only what is surely right is understood here; any other header is left to the safetensors library to judge.
"""

import json
import math
import os
import sys
from collections.abc import Iterable
from typing import Any

import torch

from neurolens.direct_reads import Span

MOST = 16  # headers kept; a run needs one
LONGEST = 100_000_000  # bytes, as in the safetensors library

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

_known: dict[bytes, tuple[dict[str, Span], int]] = {}  # header -> its tensors, and the size of a whole file


def spans(handle: int) -> dict[str, Span] | None:
    """Return where each tensor lies in an open file, in the file's order; None: ask the safetensors library."""
    size = os.fstat(handle).st_size
    length = int.from_bytes(os.pread(handle, 8, 0), "little")
    if sys.byteorder != "little" or not 2 <= length <= min(LONGEST, size - 8):
        return None
    header = os.pread(handle, length, 8)
    known = _known.get(header)
    if known is None:
        known = _parsed(header) if len(header) == length else None
        if known is None:
            return None
        while len(_known) >= MOST:
            _known.pop(next(iter(_known)), None)
        _known[header] = known
    found, whole = known
    return found if whole == size else None


def _parsed(header: bytes) -> tuple[dict[str, Span], int] | None:
    """Parse a header: tensors side by side from the first byte on, each as long as its dtype and shape say."""
    try:
        content: dict[str, Any] = json.loads(header.decode(), object_pairs_hook=_distinct)
        entries = sorted(_entry(k, v) for k, v in content.items() if k != "__metadata__")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    if not entries or not header.startswith(b"{") or not _is_text(content.get("__metadata__", {})):
        return None
    start = end = 8 + len(header)
    found = {}
    for begin, stop, name, kind, shape in entries:
        nbytes = math.prod(shape) * DTYPES[kind].itemsize
        if start + begin != end or stop - begin != nbytes:
            return None
        found[name] = Span(end, nbytes, DTYPES[kind], shape)
        end += nbytes
    return found, end


def _entry(name: str, entry: dict[str, Any]) -> tuple[int, int, str, str, tuple[int, ...]]:
    """Return an entry as (begin, end, name, dtype, shape); ValueError if anything in it is not as it should be."""
    begin, stop = entry["data_offsets"]
    shape, kind = entry["shape"], entry["dtype"]
    numbers = [begin, stop, *shape]
    name.encode()  # a lone surrogate is no text
    if len(entry) != 3 or kind not in DTYPES or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(name)
    if not isinstance(shape, list) or max(numbers) >= 1 << 63:
        raise ValueError(name)
    return begin, stop, name, kind, tuple(shape)


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _is_text(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
