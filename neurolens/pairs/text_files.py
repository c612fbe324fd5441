"""Embeddings of phrases out of a store, in the reference's files: a .pt file per set, and the phrases beside it."""

import os
from pathlib import Path

import xarray as xr

from neurolens.errors import DataError, SchemaError
from neurolens.pairs.opened import at, phrase_set
from neurolens.pairs.phrases import write_embeddings


def write_text_files(
    run: str | os.PathLike[str] | xr.Dataset | xr.DataTree,
    folder: str | os.PathLike[str],
    *,
    set: str | None = None,
    epoch: int | None = None,
    step: int | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write the embeddings of a run's phrases at one checkpoint as the reference keeps them.

    Parameters
    ----------
    run
        The store's folder or URL, or what is opened of it.
    folder
        Where to; it is made if it is not there.
    set
        Of phrases; by default all.
    epoch, step
        The checkpoint; by default the last one at which texts are measured.
    overwrite
        Replace files that are there already.

    Returns
    -------
    paths
        Of each set ``text_embeddings_SET.pt``, one float32 tensor (phrase, feature) of ``torch.save``, bit for bit what
        the store has; and ``text_embeddings_SET.txt``, the phrases in the same order, one a line.

    Raises
    ------
    MissingMeasurementError, MissingCheckpointError
        If there are no texts, or no such checkpoint.
    SchemaError
        If there is no such set, or two would be written to one file.
    DataError
        If a file is there already, or cannot be written.
    """
    data = at(run, epoch=epoch, step=step, cubes=("texts",))
    return written_sets(data, Path(folder), only=set, overwrite=overwrite)


def written_sets(
    data: xr.Dataset, folder: Path, *, only: str | None = None, overwrite: bool = False
) -> tuple[Path, ...]:
    """Write the sets of phrases of one checkpoint, as `at` gives it; see `write_text_files`."""
    names = [only] if only is not None else sorted({str(name) for name in data["set"].to_numpy().tolist()})
    stems: dict[str, str] = {}
    for name in names:
        safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
        stem = f"text_embeddings_{safe}"
        if stem in stems:
            raise SchemaError(
                f"the sets {stems[stem]!r} and {name!r} would both be called {stem}.pt; give one another name"
            )
        stems[stem] = name
    there = [stem for stem in stems if (folder / f"{stem}.pt").exists() or (folder / f"{stem}.txt").exists()]
    if there and not overwrite:
        raise DataError(f"{folder / there[0]}.pt is there already; name another folder, or say to overwrite")
    out: list[Path] = []
    for stem, name in stems.items():
        rows = phrase_set(data, name)
        out.append(write_embeddings(rows, folder / f"{stem}.pt"))
        lines = "\n".join(map(str, rows["phrase"].to_numpy().tolist()))
        (folder / f"{stem}.txt").write_text(lines + "\n", encoding="utf-8")
        out.append(folder / f"{stem}.txt")
    return tuple(out)
