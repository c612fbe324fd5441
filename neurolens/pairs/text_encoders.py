"""From a network to its text tower: a function from a list of texts to their embeddings."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from neurolens.errors import DataError, MissingExtraError, SchemaError

if TYPE_CHECKING:
    import torch

    from neurolens.models import Network

Encoder = Callable[[list[str]], "torch.Tensor"]
OPEN_CLIP = "open_clip/"


def encoder_of(network: "Network") -> Encoder:
    """Return what embeds texts by a network's text tower, with the weights that it has when it is called.

    Parameters
    ----------
    network
        Of open_clip, whose texts go through open_clip's tokenizer of the architecture; or any whose module has a method
        ``encode_text``. That is given tokens, (text, token), where the module has an attribute ``tokenizer``: a
        function from a list of texts to such a tensor; else the list of texts as it is.

    Returns
    -------
    function : list of str → tensor (text, feature), not normalised
        It runs the module where it is, in the mode that it is in, without gradients.

    Raises
    ------
    SchemaError
        If the network has no text tower.
    MissingExtraError
        If open_clip, or transformers, is absent and needed.
    DataError
        If the architecture has a tokenizer of transformers that is not on this machine. Nothing is downloaded. When
        called: if a text has more tokens than the tower takes.
    """
    module, name = network.module, str(network.description.get("name", ""))
    encode = getattr(module, "encode_text", None)
    if not callable(encode):
        raise SchemaError(
            f"network {name!r} has no text tower: no method encode_text; give the phrases' embeddings as a file "
            '(embeddings = "file.pt" in their table), or take a network that has both towers, such as open_clip/RN50'
        )
    tokenizer = _tokenizer(name.removeprefix(OPEN_CLIP)) if name.startswith(OPEN_CLIP) else None
    tokenizer = getattr(module, "tokenizer", None) if tokenizer is None else tokenizer

    def embed(texts: list[str]) -> "torch.Tensor":
        import torch

        with torch.no_grad():
            if tokenizer is None:
                found: torch.Tensor = encode(texts)
                return found
            _require_short(tokenizer, texts)
            tensor = next((t for t in (*module.parameters(), *module.buffers())), None)
            tokens = tokenizer(texts)
            found = encode(tokens if tensor is None else tokens.to(tensor.device))
            return found

    return embed


@cache
def _tokenizer(architecture: str) -> Any:
    """Return open_clip's tokenizer of an architecture, from files that are here."""
    try:
        open_clip = import_module("open_clip")
    except ImportError as error:
        raise MissingExtraError.of("open_clip_torch", "clip", "its tokenizers") from error
    config = open_clip.get_model_config(architecture) or {}
    other = config.get("text_cfg", {}).get("hf_tokenizer_name")
    if not other:
        with _same_handlers():
            return open_clip.get_tokenizer(architecture)
    try:
        with _same_handlers():
            return open_clip.get_tokenizer(architecture, local_files_only=True)
    except ImportError as error:
        raise MissingExtraError.of("transformers", "text", f"the tokenizer of {architecture}") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"the tokenizer of {architecture!r} is {other!r} of the Hugging Face hub, and is not on this machine; "
            f"fetch it where there is a network: hf download {other}"
        ) from error


@contextlib.contextmanager
def _same_handlers() -> Iterator[None]:
    """Leave logging as it is: open_clip logs by the root logger, which then shows what all libraries have to say."""
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)


def _require_short(tokenizer: Any, texts: Sequence[str]) -> None:
    """Refuse texts that a tokenizer of CLIP's kind would cut without saying so."""
    most, split = getattr(tokenizer, "context_length", None), getattr(tokenizer, "encode", None)
    if not isinstance(most, int) or not callable(split):
        return
    for text in texts:
        count = len(split(text)) + 2  # its marks of begin and end
        if count > most:
            raise DataError(
                f"{text[:60]!r} has {count} tokens, and the text tower takes {most}; shorten the phrase, or its "
                "template"
            )
