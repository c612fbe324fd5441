"""What rows are measured against: numbers of one checkpoint, measured once and kept in the user's cache."""

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import platformdirs
from filelock import FileLock

from neurolens.errors import DataError
from neurolens.rows.materials import MEASURES, Materials
from neurolens.rows.planning import key

if TYPE_CHECKING:
    from neurolens.models import Network


def referred(materials: Materials, network: "Network") -> npt.NDArray[Any] | None:
    """Return the numbers of the reference that rows of this cube need; None where they need none.

    They are measured by the measuring module's ``refer``, once: what is kept lies under a key of all that decides it.

    Parameters
    ----------
    network : filled with the reference's weights, where they have to be measured

    Raises
    ------
    CheckpointError, ModelMismatchError, NonFiniteError
        As for any row.
    DataError
        If the cache cannot be written.
    """
    reference = materials.reference
    if reference is None:
        return None
    from neurolens import checkpoints

    measure = import_module(MEASURES[materials.cube])
    config = {part: materials.parts[part] for part in measure.REFERRING}
    name = key({"reference": reference.digest, "model": materials.model, "measurement": config})
    folder = Path(platformdirs.user_cache_path("neurolens", appauthor=False)) / "references"
    path = folder / f"{name}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if path.exists():
                kept: npt.NDArray[Any] = np.load(path)
                return kept
            table = materials.study.checkpoints
            checkpoints.load(network.module, reference.path, table, digest=reference.digest)
            found: npt.NDArray[Any] = measure.refer(
                network,
                materials.samples,
                table=materials.table,
                batch_size=materials.study.compute.batch_size,
                device=materials.device,
            )
            checkpoints.require_unchanged(reference.path, reference.digest)
            _write(path, found)
            return found
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); free some space there, or set XDG_CACHE_HOME to a folder "
            "that can be"
        ) from error


def _write(path: Path, values: npt.NDArray[Any]) -> None:
    """Write in one step: killed at any time, the file is whole or not there."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".npy", delete=False) as draft:
        np.save(draft, values)
    os.replace(draft.name, path)
