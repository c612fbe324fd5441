"""Tokenizers: what turns a text into a network's input, identified by the files that define it."""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens import hub
from neurolens.errors import StudyError
from neurolens.study import Transformers

Ids = npt.NDArray[np.int32]

_VOLATILE = {"name_or_path", "_name_or_path", "transformers_version", "tokenizer_file", "_commit_hash", "is_local"}
_CHUNK = 1024  # texts tokenised at once: bounds the memory, and changes nothing


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer of the transformers library.

    Attributes
    ----------
    name
        Where it came from: a folder's name, or a name on the hub.
    digest
        The sha256 of the files that define it; of its configuration, what may change a token.
    pad
        The token that fills a batch: its own padding token, else its end of text, else token 0. The attention mask
        says where it stands, so which one it is changes no number.
    silent
        Tokens that hold nothing of a text: padding, begin and end of text, and the like.
    raw
        The tokenizer itself, for what this does not do, such as decoding.
    """

    name: str
    digest: str
    pad: int
    silent: frozenset[int]
    raw: Any
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def encode(self, texts: Sequence[str], *, max_length: int) -> list[Ids]:
        """Return the tokens of each text, the tokenizer's special tokens included, cut to ``max_length``."""
        found: list[Ids] = []
        with self._lock, hub.quiet():  # a tokenizer holds its truncation as state
            for start in range(0, len(texts), _CHUNK):
                encoded = self.raw(
                    list(texts[start : start + _CHUNK]),
                    truncation=True,
                    max_length=max_length,
                    padding=False,
                    return_attention_mask=False,
                )
                found += [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
        return found


def tokenizer_of(table: Transformers) -> Tokenizer | None:
    """Open the tokenizer that a study names; None if it names none and its model's folder holds none.

    Raises
    ------
    StudyError
        If the named one is not there or cannot be opened.
    """
    name = table.tokenizer or table.source
    folder = hub.model_folder(name, needs=hub.TOKENIZER_FILES, download=table.download)
    found = tokenizer_in(folder, os.path.basename(name) if os.path.isdir(name) else name)
    if found is None and table.tokenizer is not None:
        raise StudyError(
            f"model.transformers.tokenizer: '{name}' holds no tokenizer; one of {', '.join(hub.TOKENIZER_FILES[:2])} "
            "was needed"
        )
    return found


def tokenizer_in(folder: Path, name: str) -> Tokenizer | None:
    """Open the tokenizer of a folder; None if the folder holds none.

    Raises
    ------
    StudyError
        If its files cannot be read, or need code of their own.
    MissingExtraError
        If the transformers library is absent.
    """
    files = _files(folder)
    if not any(f.suffix in (".json", ".txt", ".model") and f.stem not in ("special_tokens_map",) for f in files):
        return None
    return _opened(folder, name, _digest(files))


@lru_cache(maxsize=8)
def _opened(folder: Path, name: str, digest: str) -> Tokenizer:
    transformers = hub.library("transformers", "a tokenizer of the transformers library")
    try:
        with hub.quiet():
            raw = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StudyError(
            f"the tokenizer in '{folder}' cannot be opened ({type(error).__name__}: {first}); "
            "name another with model.transformers.tokenizer"
        ) from error
    names = ("pad", "bos", "eos", "cls", "sep")
    special: dict[str, Any] = {n: getattr(raw, f"{n}_token_id", None) for n in names}
    pad = next((int(v) for v in (special["pad"], special["eos"]) if v is not None), 0)
    return Tokenizer(name, digest, pad, frozenset(int(v) for v in special.values() if v is not None), raw)


def _files(folder: Path) -> list[Path]:
    return sorted({f for pattern in hub.TOKENIZER_FILES for f in folder.glob(pattern) if f.is_file()})


def _digest(files: Sequence[Path]) -> str:
    hashed = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        if file.name == "tokenizer_config.json":
            settings = {k: v for k, v in json.loads(content).items() if k not in _VOLATILE and k != "chat_template"}
            content = json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()
        hashed.update(f"{file.name} {len(content)}\n".encode())
        hashed.update(content)
    return hashed.hexdigest()
