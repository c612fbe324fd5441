"""The names of a checkpoint's tensors, brought to those of the network: prefixes removed, old names replaced."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from neurolens.errors import CheckpointError

RENAMES = {"densenet": (re.compile(r"\b(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)"), r"\1")}
"""What old names are replaced by. ``densenet``: ``norm.1`` is ``norm1`` since torchvision 0.3, and so for its other
parts; the files of its published weights have the old names."""

T = TypeVar("T")


def as_in_network(
    held: Mapping[str, T], *, strip_prefixes: Iterable[str] = (), renames: Iterable[str] = ()
) -> dict[str, T]:
    """Return what a file holds by the names that the network has for it.

    Parameters
    ----------
    strip_prefixes
        Removed from the names, in this order, each where a name has it.
    renames
        Keys of `RENAMES`, applied afterwards, in this order.

    Raises
    ------
    CheckpointError
        If two tensors have the same name then.
    """
    named = dict(held)
    for prefix in strip_prefixes:
        names = [name.removeprefix(prefix) for name in named]
        named = _by_name(names, named, f"without the prefix {prefix!r}", "strip_prefixes")
    for which in renames:
        pattern, new = RENAMES[which]
        names = [pattern.sub(new, name) for name in named]
        named = _by_name(names, named, f"with the old names of {which} replaced", "renames")
    return named


def _by_name(names: list[str], held: Mapping[str, T], how: str, field: str) -> dict[str, T]:
    named = dict(zip(names, held.values(), strict=True))
    if len(named) < len(held):
        raise CheckpointError(f"{how} two tensors have the same name; correct checkpoints.{field}")
    return named
