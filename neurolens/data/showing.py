"""What a network is shown, image or text: the arguments of its forward, batch by batch."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neurolens.data.batching import batches
from neurolens.data.samples import Indices, SampleSet
from neurolens.data.texts import TextSet
from neurolens.errors import DataError

if TYPE_CHECKING:
    from neurolens.models import Network


class Shown(NamedTuple):
    """One batch, on the device: the network's forward is called as ``module(*args, **kwargs)``.

    Attributes
    ----------
    args : images: (x,), float32 (B, C, H, W); texts: ()
    kwargs : texts: ``input_ids`` and ``attention_mask``, int64 (B, T); images: {}
        An encoder-decoder is also given ``decoder_input_ids`` and ``decoder_attention_mask``: the same tokens, moved
        on by one behind its start token, so that the mask holds for its decoder too.
    mask : (B, T) bool, True where a token of the text stands; None for images
        T is the length of the batch's longest text; the rest is filled on the right.
    y : (B,) int64, labels
    indices : (B,) int64, positions in the set
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    mask: Tensor | None
    y: Tensor
    indices: Indices


def shown(
    samples: SampleSet,
    network: "Network",
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    indices: npt.ArrayLike | None = None,
) -> Iterator[Shown]:
    """Yield the samples in order, as the network takes them. Images are those of `batches`.

    Parameters
    ----------
    batch_size
        Samples a batch, at most. With texts it decides how far a batch is filled, never what the mask covers.
    indices : positions in the set, in the order wanted; all by default

    Raises
    ------
    DataError
        If images are to be shown to a network that reads texts, or texts to one that does not, or a text is longer
        than the network has positions.
    """
    if isinstance(samples, TextSet):
        yield from _texts(samples, network, batch_size=batch_size, device=device, indices=indices)
        return
    if network.tokenizer is not None:
        raise DataError(
            f"the network reads texts, and {samples.name} holds images; set [data] source to text, jsonl, parquet or "
            "datasets"
        )
    for batch in batches(samples, network.preprocessing, batch_size=batch_size, device=device, indices=indices):
        yield Shown((batch.x,), {}, None, batch.y, batch.indices)


def _texts(
    samples: TextSet,
    network: "Network",
    *,
    batch_size: int,
    device: str | torch.device,
    indices: npt.ArrayLike | None,
) -> Iterator[Shown]:
    tokenizer = network.tokenizer
    if tokenizer is None:
        raise DataError(
            f"{samples.name} holds texts, and the network has no tokenizer; set model.transformers.tokenizer to a "
            "folder that holds one, or show it images"
        )
    tokens = samples.tokens(tokenizer)
    config = getattr(network.module, "config", None)
    positions = _positions(network.module)
    longest = max(map(len, tokens), default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"{samples.name} has a text of {longest} tokens, and the network has {positions} positions; "
            f"set data.text.max_length = {positions}"
        )
    at = np.arange(len(samples)) if indices is None else np.asarray(indices, dtype=np.int64)
    for start in range(0, len(at), batch_size):
        chunk = at[start : start + batch_size]
        rows = [tokens[i] for i in chunk]
        ids = np.full((len(rows), max(map(len, rows))), tokenizer.pad, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=np.bool_)
        for row, text in enumerate(rows):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = True
        real = torch.from_numpy(mask).to(device)
        kwargs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": real.long()}
        if getattr(config, "is_encoder_decoder", False):
            kwargs |= _decoder_input(kwargs, config, tokenizer.pad)
        y = torch.from_numpy(np.ascontiguousarray(samples.labels[chunk])).to(device)
        yield Shown((), kwargs, real, y, chunk)


def _positions(module: torch.nn.Module) -> int | None:
    """Return how many tokens a network has positions for; None where it names no limit."""
    positions: int | None = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    if positions is None:
        return None
    table = next((m for name, m in module.named_modules() if name.endswith("position_embeddings")), None)
    before = getattr(table, "padding_idx", None)  # RoBERTa counts positions from behind its padding token
    return positions if before is None else positions - before - 1


def _decoder_input(kwargs: dict[str, Tensor], config: object, pad: int) -> dict[str, Tensor]:
    """Return the input tokens moved on by one, behind the start token."""
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(config, "pad_token_id", None)
    moved = kwargs["input_ids"].roll(1, dims=1)
    moved[:, 0] = pad if start is None else start
    return {"decoder_input_ids": moved, "decoder_attention_mask": kwargs["attention_mask"]}
