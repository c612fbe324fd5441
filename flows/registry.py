"""Find flows by name: those of neurolens and those that installed packages add (entry-point group neurolens.flows)."""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from neurolens.errors import StudyError, nearest

GROUP = "neurolens.flows"


def find(names: Iterable[str]) -> dict[str, EntryPoint]:
    """Return the entry points of the named flows, in the order given; nothing is imported.

    Raises
    ------
    StudyError
        If there is no flow of a name.
    """
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    found = {}
    for name in names:
        if name not in known:
            raise StudyError(f"there is no flow {name!r}; {nearest(name, known)}")
        found[name] = known[name]
    return found


def load(names: Iterable[str]) -> dict[str, Any]:
    """Import the named flows."""
    return {name: entry.load() for name, entry in find(names).items()}
