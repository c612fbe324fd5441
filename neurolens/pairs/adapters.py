"""The pool's matrices from open_clip, timm, OpenAI's state dicts, or a module or dict of one's own."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens.errors import MissingExtraError, SchemaError
from neurolens.pairs.pool import Pool, as_array
from neurolens.quick_gelu import is_openai, require_activation

if TYPE_CHECKING:
    from torch import nn

Array = npt.NDArray[Any]
HEAD_DIM = 64
"""Of all of OpenAI's networks."""
PREFIXES = ("visual.attnpool.", "attnpool.", "")
NAMES = {
    **{f"{kind}_{of}": f"{of}_proj.{name}" for of in "qkv" for kind, name in (("W", "weight"), ("b", "bias"))},
    "W_o": "c_proj.weight",
    "b_o": "c_proj.bias",
    "positions": "positional_embedding",
}
"""What OpenAI calls the fields of a Pool."""


def pool_of(source: Any, *, heads: int | None = None) -> Pool:
    """Return the pool of whatever holds one.

    Parameters
    ----------
    source
        A `Pool`; a network or pool of open_clip, OpenAI or timm, or one's own module with their names; a state dict, or
        the path of a file of one, see `state_pool`; a dict of the fields of `Pool`.
    heads
        Of a state dict, which does not say.

    Raises
    ------
    SchemaError
        If there is no attention pool in it, as in a ViT.
    CheckpointError
        If a file cannot be read without executing what it holds.
    """
    if isinstance(source, Pool):
        return source
    if isinstance(source, str | os.PathLike):
        from neurolens.weights import read_state

        return state_pool(read_state(source), heads=heads)
    if isinstance(source, Mapping):
        return Pool(**source) if "W_q" in source else state_pool(source, heads=heads)
    if not hasattr(source, "named_modules"):
        raise SchemaError(
            f"found {type(source).__name__}, and a module, a state dict, a path or the fields of a Pool were needed"
        )
    return timm_pool(source) if timm_pools(source) else open_clip_pool(source)


def open_clip_pool(
    model: "nn.Module",
    *,
    weights: tuple[str, str] | Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
) -> Pool:
    """Return the pool of a CLIP-ResNet, as open_clip and OpenAI's package hold it.

    Parameters
    ----------
    model
        A whole network, its image tower, or the pool alone; any module with the same names will do.
    weights : (name, tag), or a state dict, optional
        Where the weights are from, as ``("RN50", "openai")`` in open_clip, to check the activation of the text tower.
    quick_gelu : bool, optional
        Whether they were trained with QuickGELU, where it is known.

    Raises
    ------
    SchemaError
        If there is no such pool, as in a ViT, or several.
    ModelMismatchError
        If the text tower has another activation than the weights were trained with.
    """
    pools = _open_clip_pools(model)
    if len(pools) != 1:
        raise SchemaError(no_pool(model, list(pools)))
    if weights is not None or quick_gelu is not None:
        check_activation(model, weights=weights, quick_gelu=quick_gelu)
    (pool,) = pools.values()
    heads = getattr(pool, "num_heads", None)
    return state_pool(dict(pool.state_dict()), heads=None if heads is None else int(heads))


def state_pool(state: Mapping[str, Any], *, heads: int | None = None) -> Pool:
    """Return the pool of a state dict with OpenAI's names, ``visual.attnpool.q_proj.weight`` and so on.

    Parameters
    ----------
    state
        Tensors or arrays by name; read files by `neurolens.checkpoints` or `pool_of`, which execute nothing.
    heads
        By default 64 dimensions each.

    Raises
    ------
    SchemaError
        If there is no attention pool in it, as in that of a ViT.
    """
    prefix = next((p for p in PREFIXES if p + NAMES["W_o"] in state), None)
    if prefix is None:
        raise SchemaError(_no_pool_in(state))
    missing = [prefix + name for name in NAMES.values() if prefix + name not in state]
    if missing:
        raise SchemaError(f"the state dict has no {missing[0]!r} ({len(missing)} are missing); give all of the pool's")
    arrays: dict[str, Any] = {ours: as_array(state[prefix + name]) for ours, name in NAMES.items()}
    width = len(arrays["W_q"])
    if heads is None and width % HEAD_DIM:
        raise SchemaError(f"the queries have {width} dims, no multiple of {HEAD_DIM}; say how many heads= there are")
    return Pool(**arrays, heads=width // HEAD_DIM if heads is None else heads)


def timm_pool(module: "nn.Module", *, grid: tuple[int, int] | None = None) -> Pool:
    """Return the pool of timm's ``AttentionPool2d``, with joint or separate projections, with or without class token.

    Parameters
    ----------
    module
        The pool, or a network that holds one.
    grid : (int, int), optional
        Of the maps to come, where it is not that of the weights: positions are interpolated as timm does at each pass,
        by cubic curves with antialiasing.

    Raises
    ------
    SchemaError
        If there is no such pool; rotary positions turn the keys, and cannot be had as matrices.
    MissingExtraError
        If positions are to be interpolated and timm is not installed.
    """
    pools = timm_pools(module)
    if len(pools) != 1:
        raise SchemaError(no_pool(module, list(pools)))
    (pool,) = pools.values()
    if getattr(pool, "pool_type", "token") != "token":
        raise SchemaError(f"the pool has pool_type={pool.pool_type!r} and puts out maps; build it with 'token'")
    projections = [pool.qkv] if getattr(pool, "qkv", None) is not None else [pool.q, pool.k, pool.v]
    weight = np.concatenate([as_array(p.weight) for p in projections])
    biases = [np.zeros(len(as_array(p.weight))) if p.bias is None else as_array(p.bias) for p in projections]
    bias = np.concatenate(biases).astype(weight.dtype)
    width = len(weight) // 3
    proj = getattr(pool, "proj", None)
    matrix, offset = getattr(proj, "weight", None), getattr(proj, "bias", None)
    W_o = np.eye(width, dtype=weight.dtype) if matrix is None else as_array(matrix)
    b_o = np.zeros(len(W_o), weight.dtype) if offset is None else as_array(offset)
    positions, own = as_array(pool.pos_embed), (int(pool.feat_size[0]), int(pool.feat_size[1]))
    if grid is not None and tuple(grid) != own:
        positions = _timm_resampled(pool, grid)
    token = getattr(pool, "cls_token", None)
    return Pool(
        W_q=weight[:width],
        b_q=bias[:width],
        W_k=weight[width : 2 * width],
        b_k=bias[width : 2 * width],
        W_v=weight[2 * width :],
        b_v=bias[2 * width :],
        W_o=W_o,
        b_o=b_o,
        positions=positions,
        heads=int(pool.num_heads),
        grid=own if grid is None else (int(grid[0]), int(grid[1])),
        class_token=None if token is None else as_array(token).reshape(-1),
    )


def check_activation(
    model: "nn.Module",
    *,
    weights: tuple[str, str] | Mapping[str, Any] | None = None,
    quick_gelu: bool | None = None,
) -> None:
    """Refuse weights in a text tower whose activation they were not trained with: nothing else would show it.

    Parameters
    ----------
    model
        The whole network; one without a text tower is left alone.
    weights : (name, tag), or a state dict, optional
        Where the weights are from, as ``("RN50", "openai")`` in open_clip.
    quick_gelu : bool, optional
        Whether they were trained with QuickGELU, where ``weights`` do not tell.

    Raises
    ------
    SchemaError
        If it cannot be told what they were trained with, or what the text tower has.
    ModelMismatchError
        If these are not the same.
    """
    trained = _trained_with(weights) if quick_gelu is None else quick_gelu
    require_activation(model, quick_gelu=trained)


def _trained_with(weights: Any) -> bool:
    """Tell whether weights were trained with QuickGELU."""
    if isinstance(weights, Mapping):
        if is_openai(weights):
            return True
        raise SchemaError(
            "a state dict does not say which activation it was trained with; pass quick_gelu=True (OpenAI's weights, "
            "and those whose name has -quickgelu) or False"
        )
    if not isinstance(weights, tuple) or len(weights) != 2:
        raise SchemaError(
            f"weights={weights!r}, and a name and a tag were needed, as ('RN50', 'openai'); or a state dict"
        )
    name, tag = weights
    try:
        from open_clip.pretrained import (  # type: ignore[import-untyped]
            get_pretrained_cfg,
            list_pretrained_tags_by_model,
        )
    except ImportError:
        raise MissingExtraError.of("open_clip_torch", "clip", f"the record of {name!r}, {tag!r}") from None
    found = get_pretrained_cfg(name, tag)
    if not found:
        known = list_pretrained_tags_by_model(name)
        raise SchemaError(f"open_clip knows no weights {tag!r} of {name!r}, but {known}; or pass quick_gelu=")
    return bool(found.get("quick_gelu", False))


def attention_pools(module: "nn.Module") -> dict[str, "nn.Module"]:
    """Return the attention pools in a module, of whatever form, by their paths in it."""
    return {**timm_pools(module), **_open_clip_pools(module)}


def _open_clip_pools(module: Any) -> dict[str, Any]:
    return {
        name: m for name, m in module.named_modules() if hasattr(m, "c_proj") and hasattr(m, "positional_embedding")
    }


def timm_pools(module: Any) -> dict[str, Any]:
    """Return the pools of timm's kind in a module by their paths."""
    return {
        name: m
        for name, m in module.named_modules()
        if hasattr(m, "pos_embed") and hasattr(m, "feat_size") and hasattr(m, "num_heads") and hasattr(m, "qkv")
    }


def _timm_resampled(pool: Any, grid: tuple[int, int]) -> Array:
    try:
        from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
    except ImportError:
        raise MissingExtraError.of("timm", "clip", "interpolating positions as timm does") from None
    size, old = [int(grid[0]), int(grid[1])], list(pool.feat_size)
    turned = resample_abs_pos_embed(pool.pos_embed.detach().unsqueeze(0), size, old_size=old, num_prefix_tokens=1)
    return as_array(turned[0])


def no_pool(model: Any, found: list[str]) -> str:
    """Say why there is no attention pool to take, and what to give instead."""
    tower = getattr(model, "visual", model)
    kind = type(tower).__name__
    if found:
        return f"found {len(found)} attention pools in {kind}, at {found[:4]}; give one of them"
    if "Transformer" in kind or "ViT" in kind:
        return (
            f"found a {kind}, whose embedding is no attention pool's over the maps of a convolutional network; give a "
            "CLIP-ResNet: RN50, RN101, RN50x4, RN50x16 or RN50x64"
        )
    turned = any("RotAttentionPool" in type(m).__name__ for m in model.modules())
    why = ": rotary positions turn its keys, which are no fixed matrices then" if turned else ""
    return (
        f"found no attention pool in {kind}{why}; give a CLIP-ResNet, timm's AttentionPool2d, or its matrices: Pool(…)"
    )


def _no_pool_in(state: Mapping[str, Any]) -> str:
    if any("transformer.resblocks" in name and name.startswith("visual.") for name in state):
        return (
            "found the state dict of a ViT (visual.transformer), whose embedding is no attention pool's over the maps "
            "of a convolutional network; give that of a CLIP-ResNet: RN50, RN101, RN50x4, RN50x16 or RN50x64"
        )
    return (
        f"found no attention pool among {len(state)} names such as {sorted(map(str, state))[:3]}; needed "
        f"'{PREFIXES[0]}{NAMES['W_o']}' and its like, or the fields of a Pool"
    )
