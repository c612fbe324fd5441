"""Keys: what has the same key has the same numbers."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def key(decides: Mapping[str, Any]) -> str:
    """Return the sha256, in hex, over the canonical JSON of all that something depends on: a part of a row, say."""
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
