"""Bring the tensors of a file into a network: read straight into its memory, or its memory made the file's.

A file that is cut short while it is read is an error; while it is mapped, it ends the process of who looks at the rest.
"""

import mmap
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from neurolens.errors import CheckpointError

_PART = 1 << 21  # bytes of one read
_GAP = 1 << 12  # bytes between two tensors that are read along, and dropped
_BUFFERS = 1000  # of one read; the kernel takes 1024
_BIG = 1 << 22  # bytes from which a second thread pays
_PLAIN = (Tensor, nn.Parameter)


class Span(NamedTuple):
    """A contiguous tensor in a file."""

    start: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class _Part(NamedTuple):
    start: int
    nbytes: int
    buffers: list[memoryview]


class _Plan(NamedTuple):
    """What is read where; it holds for the same spans and the same memory."""

    spans: Mapping[str, Span]
    memory: list[Any]
    parts: list[_Part]
    nbytes: int


_plans: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()
_mapped: WeakSet[nn.Module] = WeakSet()
_helper = ThreadPoolExecutor(1, "neurolens-read")


def read_into(module: nn.Module, targets: Mapping[str, Tensor], spans: Mapping[str, Span], handle: int) -> bool:
    """Read an open file's tensors into ``targets``, the tensors of a network; False: not possible, nothing was read.

    It is possible where names, dtypes and shapes are the same and every target is contiguous memory of its own on the
    CPU. A second thread helps where torch may use more than one.

    Raises
    ------
    CheckpointError
        If the file ends early. Some of the targets then hold the file's values and some their own.
    """
    if not _all_dense(targets):
        return False
    memory = [(name, t.data_ptr(), t.dtype, t.shape, t.stride()) for name, t in targets.items()]
    plan = _plans.get(module)
    if plan is None or plan.memory != memory or (plan.spans is not spans and plan.spans != spans):
        if not _fit(targets, spans):
            return False
        parts = _parts(targets, spans)
        plan = _plans[module] = _Plan(spans, memory, parts, sum(part.nbytes for part in parts))
    try:
        _read(handle, plan)
    finally:
        torch.autograd.graph.increment_version(targets.values())
    return True


def map_into(module: nn.Module, targets: Mapping[str, Tensor], spans: Mapping[str, Span], handle: int) -> bool:
    """Make ``targets``, the tensors of a network, views of an open file's private memory map; False: not possible.

    It is possible under the conditions of `read_into`. Nothing is read before it is looked at, and a tensor that is
    written to gets pages of its own. The file must stay as it is for as long as the targets are in use.
    """
    if not (_all_dense(targets) and _fit(targets, spans)):
        return False
    mapped = torch.frombuffer(mmap.mmap(handle, 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    if any(span.start + span.nbytes > len(mapped) or span.start % span.dtype.itemsize for span in spans.values()):
        return False
    for name, target in targets.items():
        start, nbytes, dtype, shape = spans[name]
        if nbytes:
            target.data = mapped[start : start + nbytes].view(dtype).view(shape)
    torch.autograd.graph.increment_version(targets.values())
    _mapped.add(module)
    return True


def unmap(module: nn.Module, targets: Mapping[str, Tensor]) -> None:
    """Give a network memory of its own, with anything in it, if its tensors are those of a map."""
    if module in _mapped:
        for target in targets.values():
            target.data = torch.empty_like(target)
        _mapped.discard(module)


def _all_dense(targets: Mapping[str, Tensor]) -> bool:
    return all(t.is_cpu and t.layout is torch.strided and type(t) in _PLAIN for t in targets.values())


def _fit(targets: Mapping[str, Tensor], spans: Mapping[str, Span]) -> bool:
    if not hasattr(os, "preadv") or targets.keys() != spans.keys():
        return False
    if not all(_is_plain(t) and spans[k].dtype == t.dtype and spans[k].shape == t.shape for k, t in targets.items()):
        return False
    places = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in targets.values() if t.nbytes)
    return all(end <= start for (_, end), (start, _) in pairwise(places))


def _is_plain(target: Tensor) -> bool:
    return target.is_contiguous() and not (target.is_quantized or target.is_conj() or target.is_neg())


def _parts(targets: Mapping[str, Tensor], spans: Mapping[str, Span]) -> list[_Part]:
    """Split what is read into parts of similar size, in the file's order."""
    dropped = memoryview(bytearray(_GAP))
    parts: list[_Part] = []
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        view = as_bytes(targets[name]).data
        for begin in range(0, span.nbytes, _PART):
            piece, start = view[begin : begin + _PART], span.start + begin
            last = parts[-1] if parts else None
            gap = start - last.start - last.nbytes if last else -1
            if last and 0 <= gap <= _GAP and len(last.buffers) < _BUFFERS and last.nbytes + len(piece) <= _PART:
                buffers = [*last.buffers, *([dropped[:gap]] if gap else []), piece]
                parts[-1] = _Part(last.start, last.nbytes + gap + len(piece), buffers)
            else:
                parts.append(_Part(start, len(piece), [piece]))
    return parts


def copy(source: Tensor, target: Tensor) -> None:
    """Copy values, by one plain memory copy where the layouts agree.

    Tensor.copy_ splits a large tensor over all threads and waits for each: no faster on idle cores, and 10 to 20 times
    slower than one thread where other rows are being measured on them.
    """
    plain = source.dtype == target.dtype and source.device.type == target.device.type == "cpu" and target.dim() > 0
    if plain and source.is_contiguous() and target.is_contiguous():
        np.copyto(as_bytes(target), as_bytes(source))
        torch.autograd.graph.increment_version(target)
    else:
        target.copy_(source)


def as_bytes(tensor: Tensor) -> np.ndarray:
    """Return a contiguous tensor's memory, without copying it."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)  # an empty one has no stride of 1


def _read(handle: int, plan: _Plan) -> None:
    """Read all parts, with a helper where it pays; nothing is written any more once this has returned."""
    todo = deque(plan.parts)
    helped = plan.nbytes >= _BIG and torch.get_num_threads() > 1
    help = _helper.submit(_read_parts, handle, todo) if helped else None
    try:
        _read_parts(handle, todo)
    finally:
        todo.clear()
        if help is not None and not help.cancel():  # not yet begun, as it never does in a forked process: not needed
            help.result()


def _read_parts(handle: int, todo: deque[_Part]) -> None:
    while todo:
        try:
            start, left, buffers = todo.popleft()
        except IndexError:  # the other thread took the last one
            return
        while (got := os.preadv(handle, buffers, start)) < left:
            if got == 0:
                raise CheckpointError(
                    "ends early: it was cut short while it was read, and the network holds only a part of it; "
                    "restore the file, and load again"
                )
            start, left, buffers = start + got, left - got, _after(buffers, got)


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return the buffers that are still to be filled after ``count`` bytes."""
    for n, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[n + 1 :]]
        count -= len(buffer)
    return []
