"""What a training leaves on disk: checkpoints, metrics.csv, and the state to resume from, each written whole."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from filelock import FileLock, Timeout

from neurolens.checkpoint_files import LOCK, METRICS, RESUME, WRITING, some
from neurolens.errors import CheckpointError, StudyError
from neurolens.study import Checkpoints

COLUMNS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr")


@dataclass(frozen=True)
class Folder:
    """The folder of a training, held by one process at a time."""

    path: Path
    table: Checkpoints

    @property
    def metrics(self) -> Path:
        """The table of epochs."""
        return self.path / METRICS

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other trainings; the kernel frees it when the holder dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, timeout=0)
            lock.acquire()
        except Timeout:
            raise CheckpointError(
                f"another training is writing to {self.path}; wait for it, or set another checkpoints.folder"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error}); make it writable, or set another checkpoints.folder"
            ) from None
        with lock:
            lock.release()  # the context's own count holds it
            (self.path / WRITING).unlink(missing_ok=True)
            yield

    def name(self, epoch: int, step: int) -> str:
        """Return the file name of a checkpoint."""
        return self.table.pattern.format(**{**self.table.fields, "epoch": epoch, "step": step})

    def save(self, state: Mapping[str, Any], epoch: int, step: int) -> str:
        """Write a checkpoint, ``{epoch, step, state_dict}``, and return its name."""
        name = self.name(epoch, step)
        self._write(self.path / name, {"epoch": epoch, "step": step, "state_dict": dict(state)})
        return name

    def save_resume(self, state: Mapping[str, Any]) -> None:
        """Write the state to resume from."""
        self._write(self.path / RESUME, dict(state))

    def read_resume(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the state to resume from, or None where nothing was trained here.

        Raises
        ------
        CheckpointError
            If the folder holds another training's checkpoints, the state cannot be read, or checkpoints are missing.
        StudyError
            If the settings have changed since.
        """
        path = self.path / RESUME
        if not path.exists():
            self._refuse_foreign()
            return None
        mend = f"delete {self.path} to train anew, or set another checkpoints.folder"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            before = json.loads(state["settings"])
        except (RuntimeError, UnpicklingError, EOFError, KeyError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}); {mend}") from None
        now = json.loads(settings_text(settings))
        changed = _differences(before, now)
        if changed:
            raise StudyError(
                f"the checkpoints in {self.path} were trained with other settings: {'; '.join(changed)}; "
                f"going on would mix two runs: set them back, {mend}"
            )
        absent = [name for name in state["written"] if not (self.path / name).exists()]
        if absent and not (state["step"] == 0 and len(state["written"]) == 1):
            raise CheckpointError(
                f"{self.path} lacks {len(absent)} checkpoints that were saved there, first {absent[0]}; "
                f"put them back, or {mend}"
            )
        return state

    def _refuse_foreign(self) -> None:
        *folders, name = self.table.pattern.split("/")
        paths = self.path.glob("*/" * len(folders) + f"*{Path(name).suffix}")
        found = sorted(str(p.relative_to(self.path)) for p in paths if not p.name.startswith("."))
        if self.metrics.exists():
            found.append(self.metrics.name)
        if found:
            raise CheckpointError(
                f"{self.path} holds {len(found)} files of another run ({some(found, 3)}), and no {RESUME} to "
                "resume from; set another checkpoints.folder, or remove [train] from the study to only measure them"
            )

    def cut_metrics(self, after: int) -> None:
        """Remove the rows after an epoch (they are trained again); write the header where there is none."""
        rows = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        kept = [row for row in rows[1:] if row.endswith("\n") and int(row.split(",")[0]) <= after]
        self._replace(self.metrics, (",".join(COLUMNS) + "\n" + "".join(kept)).encode())

    def append_metrics(self, row: Mapping[str, float | int | None]) -> None:
        """Append one epoch; what was not measured is empty."""
        with self.metrics.open("a", newline="") as stream:
            values = ("" if row[name] is None else repr(row[name]) for name in COLUMNS)
            csv.writer(stream, lineterminator="\n").writerow(values)
            stream.flush()
            os.fsync(stream.fileno())

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()  # through memory: a file's archive would hold the temporary name, and so differ in bytes
        torch.save(state, buffer)
        self._replace(path, buffer.getbuffer())

    def _replace(self, path: Path, content: bytes | memoryview) -> None:
        temporary = self.path / WRITING
        path.parent.mkdir(parents=True, exist_ok=True)  # a pattern may have folders
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings as canonical JSON."""
    return json.dumps(settings, sort_keys=True, default=str)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key} was {_short(a)}, is {_short(b)}")
    return out


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
