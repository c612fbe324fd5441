"""Layers whose units have maps: convolutions, and tokens of an image that are laid back on their grid of patches."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neurolens.capture import first_tensor
from neurolens.errors import CaptureError
from neurolens.layers import Layer, find_layers, firing

Grid = tuple[int, int]

_BEFORE = {
    *("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token"),
    *("reg_token", "register_token", "register_tokens"),
}
"""What networks call the parameters of tokens that stand before the patches."""


@dataclass(frozen=True)
class MappedLayer(Layer):
    """A layer of units with maps.

    Parameters
    ----------
    grid
        Height and width of the maps.
    before
        How many tokens stand before the patches: class and register tokens, which are no place of the image.
    """

    grid: Grid = (0, 0)
    before: int = 0

    def maps(self, tensor: Tensor) -> Tensor:
        """Return what was captured as maps (B, U, h, w), a view where they lie together."""
        if self.axis == 2:
            rows = tensor[:, self.before :]
            if rows.shape[1] != self.grid[0] * self.grid[1]:
                raise CaptureError(
                    f"layer {self.name!r} has {tensor.shape[1]} tokens of an image, and had {self.before} + "
                    f"{self.grid[0]} × {self.grid[1]} of the first; show the network images of one size"
                )
            tensor = rows.contiguous().view(len(rows), *self.grid, -1)
        return tensor.movedim(1 if self.axis == 1 else 3, 1)


def mapped_layers(model: nn.Module, layers: Literal["auto"] | Sequence[str], probe: Any) -> tuple[MappedLayer, ...]:
    """Find layers of units that have maps, in the order in which they fire.

    Convolutional maps (B, U, h, w) are taken as they are, maps with channels last (B, h, w, U) turned. Tokens (B, T, U)
    lie on the grid of the patches, row by row, after the class and register tokens, which are dropped. How many those
    are, the network's parameters tell (`cls_token`, `register_tokens`, …), or its attribute ``num_prefix_tokens``; one
    where they do not. The grid is what a convolution in the network returns, or one that it is a multiple of, as where
    patches are merged; without a convolution it is the one with the proportions of the image.

    Parameters
    ----------
    model, layers, probe
        As for `neurolens.layers.find_layers`. Of ``"auto"``, layers without maps are left out.

    Raises
    ------
    CaptureError
        As `find_layers`, and if a layer that was named has no maps, none that was found has, or the grid of its tokens
        cannot be told.
    """
    found = find_layers(model, layers, probe)
    patches = _Patches.of(model, probe) if any(_has_tokens(layer) for layer in found) else None
    out, missing = [], []
    for layer in found:
        try:
            out.append(_mapped(layer, patches))
        except CaptureError as error:
            if layers != "auto":
                raise
            missing.append(error)
    if not out:
        raise missing[0]
    return tuple(out)


def _mapped(layer: Layer, patches: "_Patches | None") -> MappedLayer:
    given = {field.name: getattr(layer, field.name) for field in fields(Layer)}
    if _has_tokens(layer) and patches is not None:
        grid, before = patches.grid_of(layer)
        return MappedLayer(**given, grid=grid, before=before)
    if layer.axis not in (1, 3) or len(layer.shape) != 2:
        raise CaptureError(
            f"layer {layer.name!r} has activations of shape {layer.shape} per unit, and maps (h, w) are needed to "
            "compare with labels; name layers of convolutions, or of a transformer's tokens"
        )
    return MappedLayer(**given, grid=(layer.shape[0], layer.shape[1]))


def _has_tokens(layer: Layer) -> bool:
    return layer.axis == 2 and len(layer.shape) == 1 and not layer.tap.flat


@dataclass(frozen=True)
class _Patches:
    """What a network's forward tells of its grids: those of convolutions, the image, and tokens before the patches."""

    grids: tuple[Grid, ...]
    image: Grid | None
    before: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module, probe: Any) -> "_Patches":
        first = first_tensor(getattr(probe, "args", probe))
        image = (first.shape[2], first.shape[3]) if first is not None and first.ndim == 4 else None
        grids = dict.fromkeys(
            (place.shape[2], place.shape[3])
            for place in firing(model, probe)
            if place.product == "convolution" and place.shape is not None and len(place.shape) == 4
        )
        stated = getattr(model, "num_prefix_tokens", None)
        before = int(stated) if isinstance(stated, int) else sum(_counts(model.named_parameters()))
        return cls(tuple(grids), image, tuple(sorted({0, before or (0 if stated == 0 else 1)})))

    def grid_of(self, layer: Layer) -> tuple[Grid, int]:
        """Return the grid of a layer's tokens, and how many stand before it.

        Raises
        ------
        CaptureError
            If there is none, or more than one.
        """
        tokens = layer.shape[0]
        fits = [(grid, n) for n in self.before for grid in self.grids if math.prod(grid) == tokens - n]
        if not fits:
            guessed = [(self._like_the_image(tokens - n), n) for n in self.before]
            fits = [(grid, n) for grid, n in guessed if grid is not None]
        if len(fits) == 1:
            return fits[0]
        known = ", ".join(f"{h} × {w}" for h, w in self.grids) or "none"
        what = "several grids of patches have" if fits else "no grid of patches has"
        raise CaptureError(
            f"layer {layer.name!r} has {tokens} tokens of an image, and {what} so many, with "
            f"{' or '.join(map(str, self.before))} before them (convolutions return {known}); leave it out of layers, "
            "or build the network with an attribute num_prefix_tokens: how many tokens stand before the patches"
        )

    def _like_the_image(self, count: int) -> Grid | None:
        """Return the grid of so many patches with the proportions of the image, if there is one."""
        if self.image is None or count < 2:  # one token is of the whole image
            return None
        height = math.isqrt(count * self.image[0] // self.image[1])
        grid = (height, count // height) if height else (0, 0)
        if math.prod(grid) != count or grid[0] * self.image[1] != grid[1] * self.image[0]:
            return None
        merged = any(h % grid[0] == 0 and w % grid[1] == 0 for h, w in self.grids)
        return grid if merged or not self.grids else None


def _counts(parameters: Iterable[tuple[str, torch.Tensor]]) -> Iterable[int]:
    """Yield how many tokens each parameter of such tokens is: (D,), or (1, tokens, D)."""
    for name, values in parameters:
        if name.rpartition(".")[2] in _BEFORE:
            yield values.shape[-2] if values.ndim > 1 else 1
