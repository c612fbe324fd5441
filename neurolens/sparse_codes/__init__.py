"""Vectors of an embedding as sums of few phrases: matching pursuit, non-negative lasso, and spans of texts.

Names are loaded when they are first used: reading codes needs no scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurolens.sparse_codes.coding import code_blocks, sparse_codes
    from neurolens.sparse_codes.dictionaries import prepared
    from neurolens.sparse_codes.exported import write_code_files
    from neurolens.sparse_codes.lasso import lasso_codes
    from neurolens.sparse_codes.reading import describe, reconstruct
    from neurolens.sparse_codes.spans import text_span

_HOMES = {
    "code_blocks": "coding",
    "describe": "reading",
    "lasso_codes": "lasso",
    "prepared": "dictionaries",
    "reconstruct": "reading",
    "sparse_codes": "coding",
    "text_span": "spans",
    "write_code_files": "exported",
}

__all__ = [
    "code_blocks",
    "describe",
    "lasso_codes",
    "prepared",
    "reconstruct",
    "sparse_codes",
    "text_span",
    "write_code_files",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
