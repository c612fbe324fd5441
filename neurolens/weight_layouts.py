"""Where the tensors of a torch.save file lie, learned once for all files whose pickles say the same of them.

The checkpoints of a run differ in their tensors' bytes and, where a dict holds an epoch beside the state dict, in such
numbers. torch's restricted unpickler is written in Python and takes half the time of a reload; what it made of one
file's pickle holds for the others.
"""

import os
import pickletools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from neurolens.direct_reads import Span

MOST = 16  # layouts kept; a run needs one

_NUMBERS = {ord("K"): 1, ord("M"): 2, ord("J"): 4, ord("G"): 8}  # the opcodes of numbers, and the bytes that follow
_KEEPING = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "DUP")  # opcodes that give the top of the stack another use


@dataclass(frozen=True)
class Place:
    """A tensor of a file: the record that holds its storage, and how it lies in that."""

    record: str
    nbytes: int
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    contiguous: bool


@dataclass(frozen=True)
class Layout:
    """The places of a state dict, for all files whose pickle is ``texts`` with any one number between each two."""

    texts: tuple[bytes, ...]
    state_key: str | None
    places: dict[str, Place]

    def describes(self, pickle: bytes) -> bool:
        """Tell whether a file's pickle is one of this layout."""
        at = 0
        for n, text in enumerate(self.texts):
            if n:
                at += 1 + _NUMBERS.get(pickle[at] if at < len(pickle) else 0, len(pickle))
            if not pickle.startswith(text, at):
                return False
            at += len(text)
        return at == len(pickle)


_layouts: list[Layout] = []


def remember(path: Path, content: Any, state: Mapping[str, Tensor], state_key: str | None) -> None:
    """Learn a file's layout from what torch's restricted unpickler made of it with ``mmap``, and the state dict in it.

    Nothing is learned unless every tensor is found at a record of the file, and every record belongs to a tensor.
    """
    reader = _reader(path)
    tensors = list(_tensors(content))
    if reader is None or not state or not all(map(_is_plain, tensors)):
        return
    records = {reader.get_record_offset(r): r for r in reader.get_all_records() if r.startswith("data/")}
    storages = {name: tensor.untyped_storage() for name, tensor in state.items()}
    pointers = sorted({tensor.untyped_storage().data_ptr() for tensor in tensors})
    base = pointers[0] - min(records, default=0)
    if [pointer - base for pointer in pointers] != sorted(records) or not _is_native(reader):
        return
    places = {
        name: Place(
            record=records[storages[name].data_ptr() - base],
            nbytes=storages[name].nbytes(),
            dtype=tensor.dtype,
            offset=int(tensor.storage_offset()),
            shape=tuple(tensor.shape),
            stride=tensor.stride(),
            contiguous=tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg(),
        )
        for name, tensor in state.items()
    }
    del _layouts[: len(_layouts) + 1 - MOST]
    _layouts.append(Layout(_texts(reader.get_record("data.pkl")), state_key, places))


def remembered(path: Path, state_key: str | None) -> dict[str, Tensor] | None:
    """Map the state dict of a file whose pickle is known; None: torch has to read it."""
    reader = _reader(path)
    places = None if reader is None else _places(reader, state_key)
    if places is None:
        return None
    size = os.stat(path).st_size
    starts = _starts(reader, places, size)
    if starts is None:
        return None
    file = torch.UntypedStorage.from_file(str(path), False, size)
    state = {}
    for name, place in places.items():
        start = starts[place.record]
        storage = file[start : start + place.nbytes]
        state[name] = torch.empty(0, dtype=place.dtype).set_(storage, place.offset, place.shape, place.stride)
    return state


def spans(file: BinaryIO, state_key: str | None) -> dict[str, Span] | None:
    """Return where each tensor of a file's state dict lies, if its pickle is known and all of them are contiguous."""
    reader = _reader(file)
    places = None if reader is None else _places(reader, state_key)
    if places is None or not all(place.contiguous for place in places.values()):
        return None
    starts = _starts(reader, places, os.fstat(file.fileno()).st_size)
    if starts is None:
        return None
    found = {}
    for name, place in places.items():
        size = place.dtype.itemsize
        numel = torch.Size(place.shape).numel()
        found[name] = Span(starts[place.record] + place.offset * size, numel * size, place.dtype, place.shape)
    return found


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield the tensors in dicts, lists and tuples, however deep."""
    todo = [content]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value


def _is_plain(value: Tensor) -> bool:
    if value.layout is not torch.strided or value.is_quantized:
        return False
    return value.device.type == "cpu" and value.numel() > 0


def _reader(file: Path | BinaryIO) -> Any:
    if not isinstance(file, Path):
        file.seek(0)
    try:
        return torch._C.PyTorchFileReader(str(file) if isinstance(file, Path) else file)
    except RuntimeError:  # not a zip archive as torch writes it
        return None


def _is_native(reader: Any) -> bool:
    return not reader.has_record("byteorder") or bool(reader.get_record("byteorder") == sys.byteorder.encode())


def _places(reader: Any, state_key: str | None) -> dict[str, Place] | None:
    if not reader.has_record("data.pkl") or not _is_native(reader):
        return None
    pickle = reader.get_record("data.pkl")
    known = (layout.places for layout in _layouts if layout.state_key == state_key and layout.describes(pickle))
    return next(known, None)


def _starts(reader: Any, places: Mapping[str, Place], size: int) -> dict[str, int] | None:
    """Return where each record starts; None if one is not there or not whole, which torch says in its words."""
    try:
        starts = {place.record: int(reader.get_record_offset(place.record)) for place in places.values()}
    except RuntimeError:
        return None
    return starts if all(starts[p.record] + p.nbytes <= size for p in places.values()) else None


def _texts(pickle: bytes) -> tuple[bytes, ...]:
    """Cut a pickle at the numbers that are nothing but values of the dict that it makes, such as its epoch.

    The pickle is followed on a stack of heights. A number counts if it lies where the dict's values do, stays there
    until the last instruction but one puts all into the dict, and nothing looks at it before: whatever number it is,
    the rest of the pickle makes the same of itself.
    """
    try:
        steps = [(op, at) for op, _, at in pickletools.genops(pickle) if at is not None]
    except ValueError:
        return (pickle,)
    names = [op.name for op, _ in steps]
    if names[:4] != ["PROTO", "EMPTY_DICT", "BINPUT", "MARK"] or names[-2:] != ["SETITEMS", "STOP"]:
        return (pickle,)
    height, marks = 0, [-1]  # of the items of that dict
    kept: list[tuple[int, int, int]] = []  # numbers that lie there: height, begin and end
    for n in range(4, len(steps) - 2):
        op, at = steps[n]
        if op.name in _KEEPING:
            kept = [number for number in kept if number[0] != height - 1]
        if op.name == "MARK":
            marks.append(height)
            continue
        before = [item.name for item in op.stack_before]
        low = marks.pop() - before.index("mark") if "mark" in before else height - len(before)
        if low < 0:
            return (pickle,)
        kept = [number for number in kept if number[0] < low]
        if pickle[at] in _NUMBERS and low % 2 and marks == [-1]:
            kept.append((low, at, steps[n + 1][1]))
        height = low + len(op.stack_after)
    if marks != [-1] or height % 2:
        return (pickle,)
    edges = [0, *(edge for _, begin, end in kept for edge in (begin, end)), len(pickle)]
    return tuple(pickle[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
