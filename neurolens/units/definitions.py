"""What *dormant* means: every definition declared once, with what it reads, how it compares, and where it is from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from neurolens.errors import SchemaError, nearest


@dataclass(frozen=True)
class Definition:
    """One definition of dormancy.

    ``quantity(*reads)`` gives a number per unit from the statistics it reads; where ``relative``, the score is that
    number over the mean of the unit's layer, else the number itself. A unit is dormant where its score is below
    ``tau``, and where it equals it unless ``strict``. ``fixed``: the threshold belongs to the definition.
    """

    reads: tuple[str, ...]
    quantity: Callable[..., Any]
    tau: float
    relative: bool = False
    strict: bool = False
    fixed: bool = False
    units: str = "1"
    source: str = ""

    @property
    def comparison(self) -> str:
        """How a score is held against tau: ``<`` or ``<=``."""
        return "<" if self.strict else "<="


def _share(count: Any, n: Any) -> Any:
    return count / n


def _itself(value: Any) -> Any:
    return value


DEFINITIONS: dict[str, Definition] = {
    "redo": Definition(("abs_sum", "n"), _share, 0.025, relative=True, source="Sokar et al. 2023, eq. 1"),
    "absolute": Definition(("abs_sum", "n"), _share, 0.1, strict=True, units="activation"),
    "dead": Definition(("max",), _itself, 0.0, fixed=True, units="activation", source="Voita et al. 2023"),
    "lop": Definition(("n_nonzero", "n"), _share, 0.01, strict=True, source="Dohare et al. 2024, incremental CIFAR"),
    "lop_rl": Definition(("n_pos", "n"), _share, 0.01, source="Dohare et al. 2024, reinforcement learning"),
    "redo_centred": Definition(
        ("abs_dev",), _itself, 0.025, relative=True, source="Sokar et al. 2023, code: sub_mean_score"
    ),
}


def definitions(names: str | Sequence[str]) -> list[str]:
    """Return the names of known definitions, each once.

    Raises
    ------
    SchemaError
        If a name is unknown (the nearest are given) or given twice, or there is none.
    """
    found = [names] if isinstance(names, str) else list(names)
    for name in found:
        if name not in DEFINITIONS:
            raise SchemaError(f"there is no definition {name!r} of dormancy; {nearest(str(name), DEFINITIONS)}")
    if not found or len(set(found)) < len(found):
        raise SchemaError(
            f"definition={found} is none, or one of them twice; name each once of {', '.join(DEFINITIONS)}"
        )
    return found
