"""A checkpoint's tensors: read without executing what the file holds, checked, copied into a network."""

import argparse
import os
import pickle
import re
import struct
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from neurolens import direct_reads, torchscript, weight_layouts
from neurolens.errors import CheckpointError, ModelMismatchError, nearest
from neurolens.fingerprints import fingerprint
from neurolens.mismatches import report
from neurolens.quick_gelu import OPENAI_ENTRIES, is_openai, require_activation
from neurolens.tensor_names import as_in_network

STATE_KEYS = ("state_dict", "model_state_dict", "model", "net")

_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run: git lfs pull",
    b"\x89HDF": "an HDF5 file; save a state dict with torch.save or safetensors",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"\x93NUMPY": "a NumPy array; save a state dict with torch.save or safetensors",
    b"<": "a web page or XML, perhaps a failed download; fetch it again",
}
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # begins files of torch.save before 1.6
ZIP = b"PK\x03\x04"
# Types that hold data only, which training scripts save beside the weights (a best accuracy, the arguments).
_SCALAR = np.float64().__reduce__()[0]
_DATA_ONLY: list[Any] = [
    argparse.Namespace,
    PosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
]
_allowing = threading.Lock()
# What torch's readers raise on bytes that are not what they expect.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
    struct.error,
)


def read_state(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    state_key: str | None = None,
    strip_prefixes: Iterable[str] = (),
    renames: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint onto the CPU, wherever it was saved from.

    Parameters
    ----------
    path
        A file of torch.save that holds a state dict, or a dict with one under one of `STATE_KEYS`; a safetensors file;
        or a TorchScript archive, of which the tensors are read and no code. Tensors are mapped from the file, not
        copied: keep them no longer than until `fill`.
    trust
        Allow the file to execute code when it is read. Only then may it hold a whole pickled module.
    state_key
        Where in the file the state dict is; nested keys are joined by dots. Absent: found.
    strip_prefixes
        Prefixes removed from tensor names, in this order, each where a name has it.
    renames
        Old names replaced by today's: ``"densenet"``, for those of torchvision's published files (``norm.1``).

    Raises
    ------
    MissingCheckpointError
        If there is no such file.
    CheckpointError
        If it is truncated, damaged, of another format, or would execute code; or if it holds no state dict, or several.
    """
    path = Path(path)
    damage = fingerprint(path).damage
    if damage:
        raise CheckpointError(f"'{path}' cannot be read: {damage}")
    state = _state(path, trust, state_key)
    try:
        return as_in_network(state, strip_prefixes=strip_prefixes, renames=renames)
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}") from None


def _state(path: Path, trust: bool, state_key: str | None) -> dict[str, Tensor]:
    """Return the state dict of a file; one of torch.save whose layout is known needs no unpickling."""
    with open(path, "rb") as file:
        head = file.read(512)
    learns = head.startswith(ZIP) and not is_safetensors(path, head) and not trust
    if learns and (known := weight_layouts.remembered(path, state_key)) is not None:
        return known
    archive = head.startswith(ZIP) and torchscript.is_archive(path)
    content = _archived(path, trust) if archive else _content(path, head, trust)
    state = _state_in(content, state_key, path)
    if learns and not archive:
        weight_layouts.remember(path, content, state, state_key)
    return state


def _archived(path: Path, trust: bool) -> dict[str, Tensor]:
    """Return the state dict of a TorchScript archive; torch's own reader, which compiles its code, only on trust."""
    try:
        return torchscript.read_archive(path)
    except _UNREADABLE as error:
        if not trust:
            raise CheckpointError(
                f"'{path}' was refused: it is a TorchScript archive whose tensors cannot be read without its code "
                f"({_first_line(error)}). Save the state dict, torch.save(model.state_dict(), …); or, if you trust "
                "where the file comes from, set checkpoints.trust = true"
            ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would have models saved in another format by now
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except _UNREADABLE as error:
        raise CheckpointError(
            f"'{path}' is no TorchScript archive that torch can load ({_first_line(error)}); restore it, or delete it"
        ) from error
    return module.state_dict()


def is_safetensors(path: Path, head: bytes) -> bool:
    """Tell whether a file is a safetensors file, by its name and its first bytes."""
    return path.suffix == ".safetensors" or (len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0")


def _content(path: Path, head: bytes, trust: bool) -> Any:
    """Return what the file holds, by its first bytes."""
    if not head:
        raise CheckpointError(f"'{path}' is empty (0 bytes): its writing was interrupted; restore it, or delete it")
    if is_safetensors(path, head):
        try:
            return safetensors.torch.load_file(path, device="cpu")
        except (safetensors.SafetensorError, *_UNREADABLE) as error:
            raise CheckpointError(
                f"'{path}' is not a whole safetensors file ({_first_line(error)}); restore it, or delete it"
            ) from error
    for magic, what in _FOREIGN.items():
        if head.lstrip().startswith(magic):
            raise CheckpointError(f"'{path}' is not a checkpoint but {what}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"'{path}' is not a checkpoint but a tar archive; unpack it first")
    zipped = head.startswith(ZIP)
    if head[0] == 0x80 and _LEGACY not in head[:32]:
        raise CheckpointError(
            f"'{path}' is a plain pickle, which executes code when it is read and was not written by torch.save; "
            "save model.state_dict() with torch.save or safetensors"
        )
    if not zipped and head[0] != 0x80:
        raise CheckpointError(
            f"'{path}' is not a checkpoint: it begins with {head[:8]!r}; "
            "a file of torch.save or safetensors was needed; correct checkpoints.pattern"
        )
    try:
        with _allowing:  # the list of allowed types is one per process
            allowed = torch.serialization.get_safe_globals()
            with torch.serialization.safe_globals([kind for kind in _DATA_ONLY if kind not in allowed]):
                return torch.load(path, map_location="cpu", weights_only=not trust, mmap=zipped)
    except _UNREADABLE as error:
        if not trust and isinstance(error, pickle.UnpicklingError) and (name := _code_in(str(error))):
            raise CheckpointError(
                f"'{path}' was refused: reading it executes code (it refers to {name}). "
                "Save the state dict alone, torch.save(model.state_dict(), …); or, if you trust where the file comes "
                "from, set checkpoints.trust = true"
            ) from error
        raise CheckpointError(
            f"'{path}' cannot be read: it is damaged, or torch.save did not write it ({_first_line(error)}); "
            "restore it, or delete it"
        ) from error


def _code_in(message: str) -> str:
    """Return what a file wanted executed, by the message of torch's restricted unpickler; empty if nothing."""
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return found[1]
    if found := re.search(
        r"(?:Trying to (?:call reduce for unrecognized function|instantiate|load)) ([^\n]+)", message
    ):
        return found[1]
    return "an unsupported instruction" if "Unsupported operand" in message and "weights_only" in message else ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _state_in(content: Any, state_key: str | None, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file holds, and check that it is one."""
    if state_key is not None:
        content = _at(content, state_key, path)
    elif isinstance(content, Mapping) and not _all_tensors(content):
        present = [key for key in STATE_KEYS if isinstance(content.get(key), Mapping | nn.Module)]
        if len(present) != 1:
            found = f"several: {present}" if present else f"none; its keys are {[str(k) for k in content][:12]}"
            raise CheckpointError(f"'{path}' should hold one state dict, found {found}; name it: checkpoints.state_key")
        content = content[present[0]]
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"'{path}' should hold a state dict, found {'an empty one' if content == {} else type(content).__name__}; "
            "save model.state_dict(), or name its place: checkpoints.state_key"
        )
    state = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"'{path}': {name!r} in the state dict is of type {type(tensor).__name__}, and a tensor was needed; "
                "name the right place: checkpoints.state_key"
            )
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"'{path}': tensor {name!r} is sparse, quantized or without data; save it as a dense tensor"
            )
        state[name] = tensor.detach()
    return state


def _at(content: Any, state_key: str, path: Path) -> Any:
    """Follow a key, whole or by its dots."""
    if isinstance(content, Mapping) and state_key in content:
        return content[state_key]
    for part in state_key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            keys = [str(k) for k in content] if isinstance(content, Mapping) else []
            raise CheckpointError(f"'{path}' has no {state_key!r}; {nearest(part, keys)}; mend checkpoints.state_key")
        content = content[part]
    return content


def _all_tensors(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None if all are finite."""
    for name, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        # A finite sum proves every term finite and is one pass; an infinite one may only have overflowed.
        if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
            return name
    return None


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a network's own tensors; nothing refers to ``state`` or its file afterwards.

    Names and shapes must be the network's, exactly; on an error nothing was copied. Of batch norm's counter
    ``num_batches_tracked`` alone a file may know nothing (before torch 0.4.1 there was none); it is then 0. Floating
    dtypes may widen on the way, as float16 to float32, and never narrow. The sizes that OpenAI's archives of CLIP hold
    beside the weights are passed over, and their text tower must have the activation that they were trained with.

    Raises
    ------
    ModelMismatchError
        With every missing, unexpected and misshapen tensor counted, the first of them named, and the mend; or because
        the text tower has another activation.
    """
    targets = targets_of(module)
    if is_openai(set(state) - set(targets)):
        require_activation(module, quick_gelu=True)
        state = {name: tensor for name, tensor in state.items() if name in targets or name not in OPENAI_ENTRIES}
    missing = [k for k in targets if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in targets]
    misshapen = [k for k, v in targets.items() if k in state and state[k].shape != v.shape]
    if missing or unexpected or misshapen:
        raise ModelMismatchError(report(targets, state, missing, unexpected, misshapen))
    for name, target in targets.items():
        if name in state and state[name].dtype != target.dtype and not _widens(state[name].dtype, target.dtype):
            raise ModelMismatchError(
                f"tensor {name!r} is {state[name].dtype} in the checkpoint and {target.dtype} in the network; "
                f"that loses precision: save the checkpoint as {target.dtype}"
            )
    with torch.no_grad():
        for name, target in targets.items():
            if name in state:
                direct_reads.copy(state[name], target)
            else:
                target.zero_()


def targets_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a network's own tensors by name."""
    return {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}


def _widens(source: torch.dtype, target: torch.dtype) -> bool:
    return source.is_floating_point and target.is_floating_point and target.itemsize > source.itemsize
