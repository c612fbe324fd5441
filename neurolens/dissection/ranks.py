"""Which rank a threshold has among the activations of a unit."""

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from neurolens.errors import SchemaError, nearest

Compat = Literal["lite"]

QUANTILE = 0.005
"""Share of a unit's activations that lie above its threshold (Bau et al. 2017, section 2.2)."""

LITE_QUANTILE = 994 / 999
"""What NetDissect and NetDissect-Lite read off for 0.005: entry 994 of linspace(0, 1, 1000)."""


class Rank(NamedTuple):
    """Between which two of n sorted values, from 0, a threshold lies, and where."""

    lower: int
    upper: int
    share: float

    def between(self, low: npt.ArrayLike, high: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the threshold from the values at both ranks; in the same steps as np.quantile, from either end."""
        a, b = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        return b - (b - a) * (1 - self.share) if self.share >= 0.5 else a + (b - a) * self.share


def rank_of(n: int, quantile: float = QUANTILE, *, compat: Compat | None = None) -> Rank:
    """Return the rank of the top-quantile threshold among ``n`` activations.

    Parameters
    ----------
    n : activations of one unit: images × positions
    quantile : share of them that is to lie above
    compat : {None, "lite"}
        None: fractional rank (1 - quantile)(n - 1), the threshold being ``np.quantile(activations, 1 - quantile)``.
        "lite": rank q n - ½ with q = 994/999 (for a ``quantile`` of 0.005), held within 0 and n - 1, which is what
        NetDissect-Lite's sketch reads off as long as it holds every value; beyond 24 576 values it estimates this one.

    Raises
    ------
    SchemaError
        If there are no activations, the share is none, or ``compat`` is unknown.
    """
    if n < 1 or not 0 < quantile < 1:
        raise SchemaError(
            f"found quantile={quantile} of {n} activations; a share between 0 and 1 of at least one is needed"
        )
    if compat is None:
        position = (1 - quantile) * (n - 1)
    elif compat == "lite":
        # the reference: linspace(0, 1, 1000)[int(1000 * (1 - quantile) - 1)]
        position = min(max(int(1000 * (1 - quantile) - 1) / 999 * n - 0.5, 0.0), n - 1.0)
    else:
        raise SchemaError(f"compat={compat!r} is unknown; {nearest(str(compat), ('lite',))}, or leave it out")
    lower = min(math.floor(position), n - 1)
    return Rank(lower, min(lower + 1, n - 1), position - lower)
