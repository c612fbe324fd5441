"""TorchScript archives, which torch.jit.save writes and OpenAI's CLIP comes in: their tensors, without their code.

An archive holds a pickle of its modules, and their code as text. The pickle is read here by an unpickler that makes
tensors, lists and empty shells of modules and nothing else, and of the code only the lists of parameters and buffers
are looked at. Nothing of the archive is executed, nor compiled.
"""

import os
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
_NAMES = re.compile(r'"([^"\n]*)"')
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n {2}__parameters__ = \[([^\]\n]*)\]\n(?: {2}__buffers__ = \[([^\]\n]*)\]\n)?", re.M
)

Held = dict[str, tuple[frozenset[str], frozenset[str] | None]]


class _Shell:
    """A module of an archive: its attributes, and the name of its class."""

    kind = ""

    held: dict[str, Any]

    def __new__(cls, *_: Any) -> "_Shell":
        shell = super().__new__(cls)
        shell.held = {}
        return shell

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module's attributes are no dict")
        self.held = state


def is_archive(path: Path) -> bool:
    """Tell whether a zip file is a TorchScript archive."""
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:  # not a zip archive as torch writes it
        return False
    return bool(reader.has_record("data.pkl") and reader.has_record("constants.pkl"))


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of an archive's module by their names, mapped from the file.

    Raises
    ------
    pickle.UnpicklingError
        If the archive refers to anything but modules and dense tensors, or holds no module.
    RuntimeError
        If a record is missing or not whole.
    """
    reader: Any = torch._C.PyTorchFileReader(str(path))
    if reader.has_record("byteorder") and reader.get_record("byteorder") != sys.byteorder.encode():
        raise pickle.UnpicklingError("its bytes are in another order than this machine's")
    size = os.stat(path).st_size
    file = torch.UntypedStorage.from_file(str(path), False, size)

    def storage(key: str, dtype: torch.dtype, count: int) -> Any:
        start = int(reader.get_record_offset(f"data/{key}"))
        nbytes = count * dtype.itemsize
        if count < 0 or start + nbytes > size:
            raise pickle.UnpicklingError(f"tensor data/{key} is not whole")
        return file[start : start + nbytes], dtype

    root = _unpickled(reader.get_record("data.pkl"), storage)
    if not isinstance(root, _Shell):
        raise pickle.UnpicklingError(f"it holds {type(root).__name__}, and a module was needed")
    state: dict[str, Tensor] = {}
    _collect(root, "", _classes(reader), state, ())
    return state


def _unpickled(content: bytes, storage: Callable[[str, torch.dtype, int], Any]) -> Any:
    """Unpickle with an allow-list; everything it hands out is made anew, so that no state set on it outlives it."""

    def tensor(held: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Tensor:
        values, dtype = held
        return torch.empty(0, dtype=dtype).set_(values, offset, tuple(shape), tuple(stride))

    def first(items: Any, *_: Any) -> Any:
        return items

    def nothing(*_: Any) -> dict[Any, Any]:
        return {}

    kinds: dict[str, type[_Shell]] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "__torch__" or module.startswith("__torch__."):
                kind = f"{module}.{name}"
                return kinds.setdefault(kind, type("Shell", (_Shell,), {"kind": kind}))
            if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
                return tensor
            if module == "torch" and name in _STORAGES:
                return _STORAGES[name]
            if (module, name) == ("torch", "device") or (module == "torch.jit._pickle" and name in _LISTS):
                return first
            if (module, name) == ("collections", "OrderedDict"):
                return nothing
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is no part of a module's tensors")

        def persistent_load(self, pid: Any) -> Any:
            match pid:
                case ("storage", torch.dtype() as dtype, str() as key, str(), int() as count):
                    return storage(key, dtype, count)
            raise pickle.UnpicklingError("a storage is not told as torch tells it")

    return Unpickler(BytesIO(content)).load()


def _classes(reader: Any) -> Held:
    """Return the parameters and buffers that the code lists for each class; None: it lists no buffers, as once."""
    found: Held = {}
    for record in reader.get_all_records():
        if not (record.startswith("code/") and record.endswith(".py")):
            continue
        module = record.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for match in _CLASS.finditer(reader.get_record(record).decode("utf-8", "replace")):
            name, parameters, buffers = match.groups()
            held = None if buffers is None else frozenset(_NAMES.findall(buffers))
            found[f"{module}.{name}"] = frozenset(_NAMES.findall(parameters)), held
    return found


def _collect(
    shell: _Shell, prefix: str, classes: Mapping[str, Any], state: dict[str, Tensor], above: tuple[int, ...]
) -> None:
    """Put a module's parameters and buffers, and those of the modules in it, into ``state``."""
    if shell.kind not in classes or id(shell) in above:
        raise pickle.UnpicklingError(f"{prefix or 'the archive'} is of {shell.kind}, which is no module in its code")
    parameters, buffers = classes[shell.kind]
    for name, value in shell.held.items():
        if isinstance(value, Tensor) and (buffers is None or name in parameters or name in buffers):
            state[prefix + name] = value
        elif isinstance(value, _Shell) and value.kind in classes:
            _collect(value, f"{prefix}{name}.", classes, state, (*above, id(shell)))
