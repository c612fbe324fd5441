"""What rows are measured against: numbers of one checkpoint, measured once and kept in the user's cache."""

from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens.errors import NeurolensError
from neurolens.rows.keys import key
from neurolens.rows.materials import MEASURES, Materials
from neurolens.rows.remembering import remembered

if TYPE_CHECKING:
    from neurolens.models import Network

Array = npt.NDArray[Any]


def referred(materials: Materials, network: "Network") -> Array | None:
    """Return the numbers of the reference that rows of this cube need; None where they need none.

    They are measured by the measuring module's ``refer``, once: what is kept lies under a key of all that decides it.

    Parameters
    ----------
    network
        Filled with the reference's weights, where they have to be measured.

    Raises
    ------
    CheckpointError, ModelMismatchError, NonFiniteError
        As for any row, naming the reference. Once refused, it is not measured again for other rows of this run.
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

    def make() -> Array:
        if name in materials.refused:
            raise materials.refused[name]
        try:
            return measured()
        except NeurolensError as error:
            at = f"{materials.every.dim} {reference.position(materials.every.dim)}"
            why = f"{materials.cube} need the thresholds of {at}, {reference.path}, which cannot be had: {error}"
            told = type(error)(why)
            if not isinstance(error.__cause__, OSError):  # which may pass
                materials.refused[name] = told
            raise told from error.__cause__

    def measured() -> Array:
        checkpoints.load(network.module, reference.path, materials.study.checkpoints, digest=reference.digest)
        found: Array = measure.refer(
            network,
            materials.samples,
            table=materials.table,
            batch_size=materials.study.compute.batch_size,
            device=materials.device,
        )
        checkpoints.require_unchanged(reference.path, reference.digest)
        return found

    return remembered("references", f"{name}.npy", make, read=_read, write=_write)


def _read(path: Path) -> Array:
    kept: Array = np.load(path)
    return kept


def _write(file: IO[bytes], values: Array) -> None:
    np.save(file, values)
