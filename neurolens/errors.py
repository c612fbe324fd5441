"""The errors neurolens raises on purpose: each is also the builtin that Python would have raised.

Every message says what was found, what was needed, and how to mend it.
"""

import difflib
from collections.abc import Iterable


class NeurolensError(Exception):
    """Base of every error raised on purpose."""


class StudyError(NeurolensError, ValueError):
    """A study file, a profile or an override is wrong."""


class SchemaError(NeurolensError, ValueError):
    """A Dataset or an array lacks a dim, coordinate, dtype or shape that a cube promises."""


class CheckpointError(NeurolensError, ValueError):
    """A checkpoint file is truncated, foreign, or needs code to be executed to be read."""


class MissingCheckpointError(NeurolensError, LookupError):
    """No checkpoint where one was asked for."""


class ModelMismatchError(NeurolensError, ValueError):
    """A checkpoint's tensors do not fit the study's network."""


class DataError(NeurolensError, ValueError):
    """A data set is missing, malformed, or does not hold what the study names."""


class NonFiniteError(NeurolensError, ArithmeticError):
    """A measurement met NaN or infinity."""


class MissingMeasurementError(NeurolensError, LookupError):
    """A reduction needs rows or quantities that were not measured."""


class CaptureError(NeurolensError, ValueError):
    """Layers that a study names are not in the network, or what they put out cannot be taken as units."""


class StoreError(NeurolensError, OSError):
    """A store cannot be opened, written, locked or trusted."""


class ServerError(NeurolensError, ConnectionError):
    """The Prefect server that flows are to run with cannot be reached or started."""


class MissingExtraError(NeurolensError, ImportError):
    """An optional dependency is absent."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> "MissingExtraError":
        """Name the package, what it is for, and the command that installs it."""
        return cls(f"{purpose} needs {package}, which is not installed; run: pip install 'neurolens[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a clause naming the known names nearest to an unknown one, e.g. ``did you mean 'loss'?``."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(repr(k) for k in known[:12])
    return f"known: {shown}{', …' if len(known) > 12 else ''}" if known else "nothing is known here"
