"""Where the tensors of a torch.save file lie, learned once for all files with the same pickle.

The checkpoints of a run that are bare state dicts differ in their tensors' bytes alone. torch's restricted unpickler is
written in Python and takes half the time of a reload; what it made of one file's pickle holds for the others.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOST = 16  # layouts kept; a run needs one


@dataclass(frozen=True)
class Place:
    """A tensor of a file: the record that holds its storage, and how it lies in that."""

    record: str
    nbytes: int
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_layouts: dict[bytes, dict[str, Place]] = {}


def remember(path: Path, content: Any) -> None:
    """Learn a file's layout from what torch's restricted unpickler made of it with ``mmap``, if that is a state dict.

    Nothing is learned unless every tensor is found at a record of the file, and every record belongs to a tensor.
    """
    if not isinstance(content, Mapping) or not all(map(_is_plain, content.values())):
        return
    reader = _reader(path)
    if reader is None or not content:
        return
    records = {reader.get_record_offset(r): r for r in reader.get_all_records() if r.startswith("data/")}
    storages = {name: tensor.untyped_storage() for name, tensor in content.items()}
    pointers = sorted({storage.data_ptr() for storage in storages.values()})
    base = pointers[0] - min(records, default=0)
    if [pointer - base for pointer in pointers] != sorted(records):
        return
    while len(_layouts) >= MOST:
        _layouts.pop(next(iter(_layouts)), None)
    _layouts[_key(reader)] = {
        name: Place(
            record=records[storages[name].data_ptr() - base],
            nbytes=storages[name].nbytes(),
            dtype=tensor.dtype,
            offset=int(tensor.storage_offset()),
            shape=tuple(tensor.shape),
            stride=tensor.stride(),
        )
        for name, tensor in content.items()
    }


def remembered(path: Path) -> dict[str, Tensor] | None:
    """Map the tensors of a file whose pickle is known; None: torch has to read it."""
    reader = _reader(path)
    places = None if reader is None else _layouts.get(_key(reader))
    if places is None:
        return None
    size = os.stat(path).st_size
    file = torch.UntypedStorage.from_file(str(path), False, size)
    state = {}
    for name, place in places.items():
        try:
            start = reader.get_record_offset(place.record)
        except RuntimeError:  # no such record: torch says so in its words
            return None
        if start + place.nbytes > size:
            return None
        storage = file[start : start + place.nbytes]
        state[name] = torch.empty(0, dtype=place.dtype).set_(storage, place.offset, place.shape, place.stride)
    return state


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
        return False
    return value.device.type == "cpu" and value.numel() > 0


def _reader(path: Path) -> Any:
    try:
        return torch._C.PyTorchFileReader(str(path))
    except RuntimeError:  # not a zip archive as torch writes it
        return None


def _key(reader: Any) -> bytes:
    parts = [reader.get_record(name) if reader.has_record(name) else b"" for name in ("data.pkl", "byteorder")]
    return hashlib.sha256(b"\0".join(parts)).digest()
