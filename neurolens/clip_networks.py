"""A small network of CLIP's kind: convolutions, CLIP's attention pool, and an embedding for the word of each class."""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurolens.errors import DataError, SchemaError, StudyError, nearest

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Words of the classes, in the order of their labels."""

ATTRIBUTES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "even": (0, 2, 4, 6, 8),
        "odd": (1, 3, 5, 7, 9),
        "small": (0, 1, 2, 3, 4),
        "large": (5, 6, 7, 8, 9),
        "prime": (2, 3, 5, 7),
        "square": (0, 1, 4, 9),
        "multiple of three": (0, 3, 6, 9),
        "with a loop": (0, 6, 8, 9),
        "without a loop": (1, 2, 3, 4, 5, 7),
        "straight": (1, 4, 7),
        "curved": (0, 2, 3, 5, 6, 8, 9),
        "with a bar on top": (5, 7),
        "with a stem": (1, 4, 7, 9),
    }
)
"""Words for several classes at once, and the classes."""

_LARGEST_SCALE = math.log(100)  # where CLIP's training clips it


class AttentionPool2d(nn.Module):
    """CLIP's attention pool, with its tensor names: the mean of the patches asks, and it and the patches answer.

    Input (B, units, h, w) of ``grid``, output (B, features), not normalised.
    """

    def __init__(self, units: int, heads: int, features: int, *, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.grid = heads, grid
        self.positional_embedding = nn.Parameter(torch.randn(1 + grid[0] * grid[1], units) * units**-0.5)
        self.q_proj = nn.Linear(units, units)
        self.k_proj = nn.Linear(units, units)
        self.v_proj = nn.Linear(units, units)
        self.c_proj = nn.Linear(units, features)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=units**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings, (B, features)."""
        if tuple(x.shape[2:]) != self.grid:
            raise SchemaError(
                f"found maps of {x.shape[2]} by {x.shape[3]}, and the pool has positions for {self.grid[0]} by "
                f"{self.grid[1]}; give images of the size that it was trained on"
            )
        patches = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1) + self.positional_embedding
        query, key, value = self._heads(self.q_proj(tokens[:, :1])), self.k_proj(tokens), self.v_proj(tokens)
        key, value = self._heads(key), self._heads(value)
        attention = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(key.shape[3]), dim=-1)
        out: Tensor = self.c_proj((attention @ value).flatten(1))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """Return (B, heads, tokens, dims) of (B, tokens, units)."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class DigitsClip(nn.Module):
    """A CLIP-ResNet in small, for 8x8 grey images of digits: an image tower, and a table in the place of a text tower.

    Input (B, 1, 8, 8), output (B, 10): the cosines of an image's embedding with those of the words of the classes,
    times a learned scale. Three 3x3 convolutions with batch norm and ReLU, one average pooling, and `AttentionPool2d`
    over maps of 4 by 4. 153 505 parameters, and 1024 pairs of a unit and a head.

    Parameters
    ----------
    classes
        10: the text is that of ten digits.
    units
        Channels of the maps that go into the pool.
    heads
        Of the pool; they divide ``units``.
    features
        Width of the embedding; above units / heads.

    Raises
    ------
    StudyError
        If there are not ten classes, or the sizes do not go together.
    """

    logit_scale: Tensor

    def __init__(self, classes: int = 10, *, units: int = 128, heads: int = 8, features: int = 64) -> None:
        super().__init__()
        if classes != len(DIGITS):
            raise StudyError(
                f"digits_clip has words for {len(DIGITS)} classes, {DIGITS[0]} to {DIGITS[-1]}, and model.classes is "
                f"{classes}; set it to {len(DIGITS)}, or train another network: an open_clip one, or one of your own"
            )
        if units % heads or units % 4 or features <= units // heads:
            raise StudyError(
                f"digits_clip with units={units}, heads={heads}, features={features}: units are to be a multiple of 4 "
                "and of the heads, and features more than units / heads; the defaults are 128, 8 and 64"
            )
        self.conv1 = nn.Conv2d(1, units // 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(units // 4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(units // 4, units // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(units // 2)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AvgPool2d(2)
        self.conv3 = nn.Conv2d(units // 2, units, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(units)
        self.relu3 = nn.ReLU()
        self.attnpool = AttentionPool2d(units, heads, features, grid=(4, 4))
        self.class_text = nn.Parameter(torch.randn(classes, features) * features**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, 10)."""
        image = functional.normalize(self.encode_image(x), dim=1)
        text = functional.normalize(self.class_text, dim=1)
        return self.logit_scale.clamp(max=_LARGEST_SCALE).exp() * image @ text.T

    def encode_image(self, x: Tensor) -> Tensor:
        """Return embeddings of images, (B, features), not normalised."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.avgpool(self.relu2(self.bn2(self.conv2(x))))
        out: Tensor = self.attnpool(self.relu3(self.bn3(self.conv3(x))))
        return out

    def encode_text(self, texts: Iterable[str]) -> Tensor:
        """Return embeddings of phrases, (B, features).

        Parameters
        ----------
        texts
            The word or the figure of a digit (its row of the table), or one of `ATTRIBUTES`: the mean of the rows of
            its classes, each of length 1, divided by its length. Case and blanks around it do not matter.

        Raises
        ------
        DataError
            If a phrase is none of them.
        """
        unit = functional.normalize(self.class_text, dim=1)
        rows = []
        for text in texts:
            meant = classes_of(text)
            one = len(meant) == 1
            rows.append(self.class_text[meant[0]] if one else functional.normalize(unit[list(meant)].mean(0), dim=0))
        return torch.stack(rows) if rows else self.class_text[:0]


def classes_of(phrase: str) -> tuple[int, ...]:
    """Return the classes that a phrase stands for: one for a digit's word or figure, several for an attribute.

    Raises
    ------
    DataError
        If `DigitsClip` has no such phrase.
    """
    known = {**{word: (n,) for n, word in enumerate(DIGITS)}, **{str(n): (n,) for n in range(10)}, **ATTRIBUTES}
    plain = " ".join(phrase.lower().split())
    if plain not in known:
        raise DataError(
            f"digits_clip has no phrase {phrase!r}; {nearest(plain, known)} It knows the words and figures of the ten "
            "digits, and those of neurolens.clip_networks.ATTRIBUTES"
        )
    return known[plain]
