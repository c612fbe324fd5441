"""Rules of integration along a path."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neurolens.errors import SchemaError, nearest

Array = npt.NDArray[Any]
Rule = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]

RULES = ("gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid")


def quadrature(steps: int, rule: Rule = "gausslegendre") -> tuple[Array, Array]:
    """Return the points of [0, 1] at which an integral is sampled, and their weights.

    Parameters
    ----------
    steps
        How many.
    rule
        As captum names and computes them. Weights add up to 1, but to 1 − 1/steps by ``riemann_trapezoid``, which is
        captum's and too small by as much.

    Returns
    -------
    alphas, weights : (steps,) float64

    Raises
    ------
    SchemaError
        If there is less than one step (two of a trapezoid), or the rule is unknown.

    References
    ----------
    Gauss–Legendre: Abramowitz and Stegun 1964, 25.4.29.
    """
    if rule not in RULES:
        raise SchemaError(f"rule={rule!r} is unknown; {nearest(str(rule), RULES)}")
    least = 2 if rule == "riemann_trapezoid" else 1
    if steps < least:
        raise SchemaError(f"steps={steps} is too few for {rule}, which needs {least} or more; the default is 50")
    if rule == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return (1 + nodes) / 2, weights / 2
    weights = np.full(steps, 1 / steps)
    if rule == "riemann_trapezoid":
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[rule]
    return (np.arange(steps) + shift) / steps, weights
