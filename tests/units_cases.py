"""Networks and samples that units are measured on: small images, and texts whose tokens are given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from neurolens.data import SampleSet, TextSet, tokenised
from neurolens.data.arrays import ArrayImages
from neurolens.data.texts import Texts
from neurolens.networks import DigitsConvNet
from neurolens.study import Preprocessing
from neurolens.tokens import Tokenizer


@dataclass(frozen=True)
class Net:
    """What measuring reads of a models.Network."""

    module: nn.Module
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(mean=(0.25,), std=(0.5,)))
    tokenizer: Tokenizer | None = None


def digits(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DigitsConvNet()
        for norm in (module.bn1, module.bn2, module.bn3):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return Net(module.train())


def images(n: int = 11, classes: int = 3, seed: int = 0) -> SampleSet:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return SampleSet(
        np.array([f"s{i:03d}" for i in range(n)]),
        rng.integers(0, classes, n),
        tuple(f"class {c}" for c in range(classes)),
        ArrayImages(pixels),
    )


class Reading(nn.Module):
    """An MLP over tokens, and one over their mean; ``values`` (token, 1) are what the first is given."""

    def __init__(self, values: Sequence[float] | None = None, width: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.embed = nn.Embedding(32, width if values is None else 1)
            self.hidden = nn.Sequential(nn.Linear(width, 5), nn.ReLU()) if values is None else nn.Identity()
            self.head = nn.Linear(5 if values is None else 1, 2)
        self.norm = nn.Identity() if values is None else nn.ReLU()
        self.fail_at = -1
        if values is not None:
            with torch.no_grad():
                self.embed.weight[: len(values), 0] = torch.tensor(values)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.hidden(self.embed(input_ids)))
        out: torch.Tensor = self.head(x.mean(dim=1))
        return out


def texts(rows: Sequence[Sequence[int]], *, special: int = 0) -> tuple[TextSet, Tokenizer]:
    """Texts whose tokens are given: each word is a token."""
    words = [" ".join(map(str, row)) for row in rows]

    def read(several: list[str], *, max_length: int, **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()][:max_length] for text in several]}

    tokenizer = Tokenizer("words", "digest", special, frozenset({special}), read)
    position = np.arange(len(rows))
    samples = TextSet(
        np.array([f"t{i:03d}" for i in range(len(rows))]),
        np.zeros(len(rows), dtype=np.int64),
        ("text",),
        Texts(words),
        coords={"position": position},
    )
    return tokenised(samples, tokenizer), tokenizer


def reading(rows: Sequence[Sequence[int]], values: Sequence[float] | None = None) -> tuple[Net, TextSet]:
    samples, tokenizer = texts(rows)
    return Net(Reading(values), tokenizer=tokenizer), samples


SENTENCES = [[3, 4, 5, 9, 11, 2], [7], [8, 9, 8, 9], [1, 2, 3], [30, 31, 29, 28, 27, 5, 4, 3]]
