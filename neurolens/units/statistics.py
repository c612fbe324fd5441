"""What is kept of a unit's activations: eight numbers that answer for every threshold, and merge exactly."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
FIELDS = ("n", "abs_sum", "mean", "m2", "min", "max", "n_pos", "n_nonzero")


@dataclass(frozen=True)
class UnitStatistics:
    """Statistics of units, (U,) float64 each.

    Attributes
    ----------
    n
        Observations: positions of a map, tokens of a text; the sum of their weights where they have some.
    abs_sum
        Sum of absolute activations.
    mean, m2
        Mean, and sum of squared deviations from it: the variance is m2 / n, or m2 / (n - 1).
    min, max
        Of all observations; +inf and -inf of none.
    n_pos, n_nonzero
        Observations above, and other than, zero.
    """

    n: Floats
    abs_sum: Floats
    mean: Floats
    m2: Floats
    min: Floats
    max: Floats
    n_pos: Floats
    n_nonzero: Floats

    @classmethod
    def empty(cls, units: int) -> "UnitStatistics":
        """Return the statistics of no observation: merging them changes nothing."""
        return cls(*empty_table(units))

    @classmethod
    def of(cls, values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> "UnitStatistics":
        """Return the statistics of values (N, U); with weights (N,), an observation of weight 0 counts for nothing."""
        x = np.asarray(values, dtype=np.float64)
        w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
        x, w = x[w != 0], w[w != 0]
        if not len(x):
            return cls.empty(x.shape[1])
        n = np.full(x.shape[1], w.sum())
        mean = w @ x / n
        return cls(n, w @ np.abs(x), mean, w @ (x - mean) ** 2, x.min(axis=0), x.max(axis=0), w @ (x > 0), w @ (x != 0))

    def merge(self, other: "UnitStatistics") -> "UnitStatistics":
        """Return the statistics of both sets of observations; exact, and in any order beyond float64 rounding.

        References
        ----------
        Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
        """
        n = self.n + other.n
        share = np.divide(other.n, n, out=np.zeros_like(n), where=n > 0)
        with np.errstate(invalid="ignore"):  # of an infinity, which spreads as NaN
            apart = np.where((self.n > 0) & (other.n > 0), other.mean - self.mean, 0.0)
        mean = np.where(self.n > 0, self.mean + apart * share, other.mean)
        return UnitStatistics(
            n=n,
            abs_sum=self.abs_sum + other.abs_sum,
            mean=mean,
            m2=self.m2 + other.m2 + apart**2 * self.n * share,
            min=np.minimum(self.min, other.min),
            max=np.maximum(self.max, other.max),
            n_pos=self.n_pos + other.n_pos,
            n_nonzero=self.n_nonzero + other.n_nonzero,
        )

    def variables(self) -> dict[str, npt.NDArray[Any]]:
        """Return the fields by name, as the units cube has them."""
        return {name: getattr(self, name) for name in FIELDS}


def empty_table(units: int) -> Floats:
    """Return the statistics of no observation as one array (8, U), its rows in the order of the fields."""
    table = np.zeros((len(FIELDS), units))
    table[FIELDS.index("min")], table[FIELDS.index("max")] = np.inf, -np.inf
    return table
