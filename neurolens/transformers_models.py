"""Networks of the transformers library: built from a configuration, without code of their own; weights come later."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurolens import hub
from neurolens.errors import StudyError
from neurolens.study import Model, Preprocessing, Transformers
from neurolens.tokens import Tokenizer, tokenizer_of

if TYPE_CHECKING:
    from neurolens.models import Network

ATTENTION = "eager"
"""Attention as plain matrix products: one algorithm on every device, and padding is masked exactly."""

VOLATILE = frozenset(
    {"transformers_version", "_name_or_path", "_commit_hash", "torch_dtype", "dtype", "use_cache", "architectures"}
)
"""Keys of a configuration that decide no number here."""


def build(table: Model) -> "Network":
    """Make a network of the transformers library from its configuration; its weights are drawn from torch's generator.

    Code that a model brings along is never executed. What the network keeps between two forwards (``use_cache``) is
    switched off. A pooler over the first token, which only heads read, is left out.

    Raises
    ------
    StudyError
        If the source is not on this machine and may not be fetched, holds no configuration, or is of an architecture
        that the library does not know; or if its input is neither texts nor images.
    MissingExtraError
        If the library is absent.
    """
    from neurolens.models import Network

    named = _table(table)
    if table.options:
        raise StudyError(
            f"model.options {table.options} have no meaning for a network of the transformers library; change the "
            "config.json in model.transformers.source"
        )
    folder = hub.model_folder(named.source, download=named.download)
    config = configuration(folder)
    module = _make(config, named)
    reads = getattr(module, "main_input_name", "input_ids")
    tokenizer: Tokenizer | None = None
    if reads == "input_ids":
        tokenizer = tokenizer_of(named)
        preprocessing, channels, size = Preprocessing(mean=(0.0,), std=(1.0,)), 1, None
    elif reads == "pixel_values":
        preprocessing, channels, size = _images(table, folder, config)
    else:
        raise StudyError(
            f"{type(module).__name__} takes {reads}, and what a network is shown here are texts or images; name "
            "another model.transformers.source"
        )
    description: dict[str, Any] = {
        "name": table.name,
        "architecture": type(module).__name__,
        "auto": named.auto,
        "config": config_digest(folder),
        "dtype": named.dtype,
        "attention": ATTENTION,
    }
    if tokenizer is not None:
        description["tokenizer"] = tokenizer.digest
    if reads == "pixel_values":
        description["preprocessing"] = preprocessing.model_dump(mode="json")
    return Network(module, preprocessing, channels, size, description, tokenizer)


def configuration(folder: Path) -> Any:
    """Read the configuration of a folder.

    Raises
    ------
    StudyError
        If there is none, or of an architecture that the library does not know without code of the model's own.
    """
    transformers = hub.library("transformers", "model.name = 'transformers'")
    if not (folder / hub.CONFIG).is_file():
        raise StudyError(
            f"'{folder}' has no {hub.CONFIG}; name a folder that save_pretrained wrote, or a name on the hub with "
            "model.transformers.download = true"
        )
    try:
        with hub.quiet():
            return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StudyError(
            f"'{folder / hub.CONFIG}' cannot be used ({type(error).__name__}: {first}); the architecture must be one "
            "that the transformers library knows itself, since code of a model's own is never executed"
        ) from error


def config_digest(folder: Path) -> str:
    """Return the sha256 of a configuration as written, in canonical JSON, without what decides no number."""
    written = json.loads((folder / hub.CONFIG).read_bytes())
    kept = {k: v for k, v in written.items() if k not in VOLATILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _table(table: Model) -> Transformers:
    if table.transformers is None:
        raise StudyError('a network of the transformers library needs [model.transformers]; add source = "folder"')
    return table.transformers


def _make(config: Any, table: Transformers) -> nn.Module:
    transformers = hub.library("transformers", "model.name = 'transformers'")
    config.use_cache = False
    auto = getattr(transformers, table.auto)
    try:
        with hub.quiet():
            module: nn.Module = auto.from_config(
                config, dtype=torch.float32, attn_implementation=ATTENTION, trust_remote_code=False
            )
    except (ValueError, TypeError, ImportError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StudyError(
            f"{table.auto} has no network for '{table.source}' ({type(error).__name__}: {first}); set "
            "model.transformers.auto, or name another source"
        ) from error
    if "pooler" in module._modules:
        module._modules["pooler"] = None  # many runs save none, and random weights would pass for the checkpoint's
    _cast(module, getattr(torch, table.dtype))
    return module


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights as from_pretrained does: those that a class keeps in float32 stay; so do buffers that it computes.

    Building in another dtype would change torch's default for every thread meanwhile.
    """
    if dtype == torch.float32:
        return
    kept = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    stays = re.compile("|".join(rf"(^|\.){name}(\.|$)" for name in sorted(kept)) or r"$^")
    saved = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in saved.items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not stays.search(name):
                tensor.data = tensor.data.to(dtype)
    config = getattr(module, "config", None)
    if config is not None:
        config.dtype = dtype


def _images(table: Model, folder: Path, config: Any) -> tuple[Preprocessing, int, int | None]:
    """Return what feeds a network of images: what its folder's preprocessor_config.json says, under the study's."""
    from neurolens.models import resolve

    own = Preprocessing()
    file = folder / "preprocessor_config.json"
    if file.is_file():
        written = json.loads(file.read_bytes())
        resize = _side(written.get("size")) if written.get("do_resize", True) else None
        crop = _side(written.get("crop_size")) if written.get("do_center_crop") else resize
        own = Preprocessing(
            resize=resize, crop=crop, mean=written.get("image_mean") or None, std=written.get("image_std") or None
        )
    channels = int(getattr(config, "num_channels", 3))
    preprocessing = resolve(table, own, channels)
    size = preprocessing.crop or getattr(config, "image_size", None)
    return preprocessing, channels, size if isinstance(size, int) else None


def _side(size: Any) -> int | None:
    """Return the side of a square, or the shorter side, as a preprocessor writes it."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return size if isinstance(size, int) else None
