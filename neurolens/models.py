"""Networks by name: the module, what its input looks like, and a description that goes in every key."""

import contextlib
import hashlib
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from pydantic import ValidationError
from torch import nn

from neurolens import clip_models
from neurolens.clip_networks import DigitsClip
from neurolens.errors import StudyError, nearest
from neurolens.networks import CifarResNet18, DigitsConvNet, ShapesConvNet, cifar_resnet18_incremental
from neurolens.study import FACTORY, OPEN_CLIP, TRANSFORMERS, Model, Preprocessing

if TYPE_CHECKING:
    from neurolens.tokens import Tokenizer

IMAGENET = Preprocessing(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_building = threading.RLock()  # torch's generator is one per process

OptionValue = bool | int | float | str


@dataclass(frozen=True)
class Network:
    """A network, in training mode as torch makes it, and what feeds it.

    ``preprocessing`` always has mean and std, one value per channel; in ``resize`` and ``crop`` None means *none*, and
    in ``interpolation`` bilinear.
    ``input_size`` is the side of the square input in pixels, None where the data decide. ``description`` is JSON-able
    and holds all that decides the numbers besides the weights. ``tokenizer`` is there where the input is text; the
    image's fields then mean nothing.
    """

    module: nn.Module
    preprocessing: Preprocessing
    channels: int
    input_size: int | None
    description: dict[str, Any]
    tokenizer: "Tokenizer | None" = None


@dataclass(frozen=True)
class _Kind:
    """How a named network is made, and its input unless the study overrides it."""

    make: Callable[..., Any]
    preprocessing: Preprocessing
    input_size: int | None


_OWN = {
    "digits_convnet": _Kind(DigitsConvNet, Preprocessing(mean=(0.0,), std=(1.0,)), 8),
    "digits_clip": _Kind(DigitsClip, Preprocessing(mean=(0.0,), std=(1.0,)), 8),
    "shapes_convnet": _Kind(ShapesConvNet, Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)), None),
    "cifar_resnet18": _Kind(
        CifarResNet18, Preprocessing(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)), 32
    ),
    "cifar_resnet18_incremental": _Kind(
        cifar_resnet18_incremental, Preprocessing(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)), 32
    ),
}


def names() -> tuple[str, ...]:
    """Return the names that `build` knows, local factories and open_clip's other networks aside."""
    return (*_OWN, TRANSFORMERS, *clip_models.RESNETS, *torchvision.models.list_models(module=torchvision.models))


def build(table: Model, *, seed: int | None = None) -> Network:
    """Make the study's network.

    Parameters
    ----------
    table
        Its name, number of classes, options and preprocessing. The name is one of `names`, or
        ``path/file.py:function``: that file alone is executed, and the function is called with the number of classes
        and the options. A network of a local factory may say what feeds it by an attribute ``preprocessing``: a dict
        with any of mean, std, resize, crop and interpolation. ``transformers`` is a network of that library, made by
        `neurolens.transformers_models`, and ``open_clip/NAME`` one of open_clip, made by `neurolens.clip_models`.
    seed
        Makes the initial weights, which are then equal on every call. Torch's global generator is as it was before,
        with or without a seed.

    Raises
    ------
    StudyError
        If the name is unknown (the nearest are given), an option does not fit, a local factory cannot be loaded or
        returns no network, or the preprocessing is not known or does not fit the channels.
    """
    factory = FACTORY.fullmatch(table.name)
    with building():
        if table.name == TRANSFORMERS:
            from neurolens import transformers_models

            _seed(seed)
            return transformers_models.build(table)
        if table.name.startswith(OPEN_CLIP):
            _seed(seed)
            return clip_models.build(table)
        if factory is None:
            kind, source = _known(table), {"name": table.name}
        else:
            kind, source = _local(Path(factory["file"]), factory["function"])
        _seed(seed)
        module = _make(kind.make, table)
    channels = _channels(module)
    own = kind.preprocessing if factory is None else _declared(module, table.name)
    preprocessing = resolve(table, own, channels)
    input_size = preprocessing.crop or kind.input_size
    description = {
        **source,
        "classes": table.classes,
        "options": dict(sorted(table.options.items())),
        "preprocessing": preprocessing.model_dump(mode="json"),
    }
    return Network(module, preprocessing, channels, input_size, description)


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Make modules in here, one thread at a time; torch's global generator is afterwards as it was before."""
    with _building, torch.random.fork_rng(devices=[]):
        yield


def _seed(seed: int | None) -> None:
    if seed is not None:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too


def _known(table: Model) -> _Kind:
    """Look a name up, here and in torchvision."""
    if table.name in _OWN:
        return _OWN[table.name]
    if table.name not in names():
        raise StudyError(
            f"model.name {table.name!r} is unknown; {nearest(table.name, names())} "
            "A network of your own is named 'path/file.py:function'"
        )
    if fixed := {"weights", "num_classes", "pretrained"} & set(table.options):
        raise StudyError(
            f"model.options cannot hold {min(fixed)!r}; use model.classes, and train.pretrained to start from "
            "torchvision's weights"
        )
    options: dict[str, OptionValue] = {}
    if table.name in ("googlenet", "inception_v3") and "init_weights" not in table.options:
        options["init_weights"] = True  # torchvision warns where it is left open
    published = torchvision.models.get_model_weights(table.name).__members__.get("IMAGENET1K_V1")
    preprocessing = IMAGENET
    if published is not None:
        shown = published.transforms()
        preprocessing = Preprocessing(
            resize=shown.resize_size[0], crop=shown.crop_size[0], mean=tuple(shown.mean), std=tuple(shown.std)
        )
    if isinstance(size := table.options.get("image_size"), int):
        preprocessing = preprocessing.model_copy(update={"resize": round(size * 256 / 224), "crop": size})

    def make(classes: int, **given: OptionValue) -> Any:
        return torchvision.models.get_model(table.name, weights=None, num_classes=classes, **options, **given)

    return _Kind(make, preprocessing, preprocessing.crop)


def _local(file: Path, function: str) -> tuple[_Kind, dict[str, str]]:
    """Execute a file that the study names and return its factory. Its digest goes in the description."""
    try:
        code = file.read_bytes()
    except OSError as error:
        there = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise StudyError(
            f"model.name: '{file}' cannot be read ({error.strerror}); {nearest(file.name, there)}"
        ) from error
    digest = hashlib.sha256(code).hexdigest()
    name = f"neurolens_factory_{digest}"
    module = types.ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(code, str(file), "exec"), module.__dict__)
    except (SyntaxError, ImportError) as error:
        del sys.modules[name]
        raise StudyError(
            f"model.name: '{file}' cannot be imported: {type(error).__name__}: {error}; mend it"
        ) from error
    make = getattr(module, function, None)
    if not callable(make):
        defined = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise StudyError(f"model.name: '{file}' has no function {function!r}; {nearest(function, defined)}")
    return _Kind(make, Preprocessing(), None), {"name": f"{file.name}:{function}", "source": digest}


def _make(make: Callable[..., Any], table: Model) -> nn.Module:
    """Call a factory and check what it returns."""
    _check_options(make, table)
    try:
        module = make(table.classes, **table.options)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        if not table.options:
            raise
        raise StudyError(
            f"model.options {table.options} do not fit {table.name!r}: {error}; correct or remove them"
        ) from error
    if not isinstance(module, nn.Module):
        raise StudyError(f"model.name: {table.name!r} returned {type(module).__name__}; a torch.nn.Module was needed")
    if any(nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise StudyError(f"model.name: {table.name!r} has lazy layers; give every layer its number of inputs")
    return module


def _check_options(make: Callable[..., Any], table: Model) -> None:
    """Refuse options that a factory does not take, before it runs."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # some callables written in C have none
        return
    try:
        signature.bind(table.classes, **table.options)
    except TypeError as error:
        known = list(signature.parameters)[1:]
        hints = [nearest(o, known) for o in table.options if o not in known]
        hint = f"; {hints[0]}" if hints else "; it is called with the number of classes and model.options"
        raise StudyError(f"model.options {table.options} do not fit {table.name!r}: {error}{hint}") from error


def _channels(module: nn.Module) -> int:
    """Return the channels of the input: those of the first convolution, 1 where there is none."""
    declared = getattr(module, "channels", None)
    if isinstance(declared, int):
        return declared
    convolutions = (m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    first = next(convolutions, None)
    return 1 if first is None else first.in_channels


def _declared(module: nn.Module, name: str) -> Preprocessing:
    """Return what a local network says of its input."""
    declared = getattr(module, "preprocessing", None)
    if declared is None:
        return Preprocessing()
    try:
        return Preprocessing.model_validate(declared)
    except ValidationError as error:
        raise StudyError(
            f"the attribute preprocessing of {name!r} is wrong: {error.errors()[0]['msg']}; "
            "it is a dict with any of mean, std, resize, crop and interpolation"
        ) from error


def resolve(table: Model, own: Preprocessing, channels: int) -> Preprocessing:
    """Lay the study's preprocessing over the network's own: the geometry as a whole, mean and std each."""
    given = table.preprocessing
    geometry = given if given.resize is not None or given.crop is not None else own
    mean, std = given.mean or own.mean, given.std or own.std
    if mean is None or std is None:
        raise StudyError(
            f"the normalisation of {table.name!r} is not known; set model.preprocessing.mean and std "
            "(0 and 1 for pixels as they are), or give the network an attribute preprocessing"
        )
    widened = {}
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise StudyError(
                f"model.preprocessing.{name} has {len(values)} values, and the network has {channels} input channels; "
                f"give {channels}"
            )
        widened[name] = values if len(values) == channels else values * channels
    interpolation = given.interpolation or own.interpolation
    return Preprocessing(
        resize=geometry.resize,
        crop=geometry.crop,
        interpolation=None if interpolation == "bilinear" else interpolation,
        **widened,
    )
