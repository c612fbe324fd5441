"""Tiles: a derived copy of a cube's rows in chunks that suit the reading of few samples over many checkpoints.

``tiles/<variable>`` holds (256 slots, 2048 samples) a chunk. A tile belongs to one group of 256 slots and one part,
and carries a digest of the row keys it was made from: where that differs from the ledger, readers ignore the tile
until it is built again.
"""

import hashlib
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from neurolens import schema
from neurolens.store.chunks import read
from neurolens.store.ledger import ABSENT, DONE, array_in, group_in, settings_of

if TYPE_CHECKING:
    from neurolens.store.run_store import Store

TILE = (256, 2048)
BLOCK_COLUMNS = 16 * TILE[1]  # read at once while tiles are built: 32 MiB of float32


def build_tiles(store: "Store") -> int:
    """Build the tiles that are missing or stale, one commit per group of 256 finished slots.

    A group is finished for a part when each of its rows is done or failed in every block.

    Returns
    -------
    int
        How many tiles were built, counted once per group and part.

    Raises
    ------
    StoreError
        If the store cannot be written.
    """
    built = 0
    root, _ = store.root()
    for name, group in root.groups():
        if name in schema.CUBES:
            for tile in sorted({tile for tile, _ in stale(group)}):
                done: list[int] = []

                def write(root: zarr.Group, tip: str, name: str = name, tile: int = tile) -> None:
                    done[:] = [_build(group_in(root, name), tile)]  # noqa: B023  (called before the next round)

                store.transact(f"{name}: tiles of slots {tile * TILE[0]}…{(tile + 1) * TILE[0] - 1}", write)
                built += sum(done)
    return built


def stale(cube: zarr.Group) -> list[tuple[int, str]]:
    """List the tiles, (group of slots, part), that are finished and have no valid copy."""
    ledger = group_in(cube, "ledger")
    state = np.asarray(array_in(ledger, "state")[...])
    parts, names = _parts(cube), _names(cube)
    group = cube.get("tiles")
    made = array_in(group, "keys")[...] if isinstance(group, zarr.Group) else np.zeros((0, 0, 32), np.uint8)
    current = matching(np.asarray(made), np.asarray(array_in(ledger, "key")[...]), state == DONE, names)
    out = []
    for tile in range(len(current)):
        rows = state[tile * TILE[0] : (tile + 1) * TILE[0]]
        for i, part in enumerate(parts):
            finished = (rows[..., i] != ABSENT).all() and (rows[..., i] == DONE).any()
            if finished and names[i] and not current[tile, i]:
                out.append((tile, part))
    return out


def matching(
    made: NDArray[np.uint8], keys: NDArray[np.uint8], done: NDArray[np.bool_], names: Sequence[Sequence[str]]
) -> NDArray[np.bool_]:
    """Say which tiles, (tile, part), were made from the rows that the ledger speaks of now.

    Parameters
    ----------
    made : (tile, part, 32), the digests of the tiles there are.
    keys : (slot, block, part, 32), the keys in the ledger.
    done : (slot, block, part), which rows are done.
    names : per part, the variables that the cube holds.
    """
    out = np.zeros((len(done) // TILE[0], done.shape[2]), bool)
    for tile in range(min(len(made), len(out))):
        slots = slice(tile * TILE[0], (tile + 1) * TILE[0])
        for i in range(min(made.shape[1], len(names))):
            out[tile, i] = np.array_equal(made[tile, i], _digest(keys[slots, :, i], done[slots, :, i], names[i]))
    return out


def variables(cube: str, part: str, present: Container[str]) -> list[str]:
    """Return the variables of a part that are present and can be tiled, (series, sample), in the schema's order."""
    found = schema.CUBES[cube].part(part).variables
    return [v.name for v in found if v.name in present and v.dims == (schema.SERIES, "sample")]


def _names(cube: zarr.Group) -> list[list[str]]:
    present, name = set(cube.array_keys()), str(settings_of(cube)["cube"])
    return [variables(name, part, present) for part in _parts(cube)]


def _parts(cube: zarr.Group) -> list[str]:
    return [str(part) for part in np.asarray(array_in(group_in(cube, "ledger"), "part")[...]).tolist()]


def _digest(keys: NDArray[np.uint8], done: NDArray[np.bool_], names: Sequence[str]) -> NDArray[np.uint8]:
    """Digest the keys (slot, block, 32) of the rows that are done, and the names of what they hold."""
    digest = hashlib.sha256("\0".join([*names, "\0"]).encode())
    digest.update(np.where(done[..., None], keys, np.uint8(0)).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _build(cube: zarr.Group, tile: int) -> int:
    """Build the stale tiles of one group of slots, and return how many."""
    parts, names = _parts(cube), _names(cube)
    todo = [part for t, part in stale(cube) if t == tile]
    if not todo:
        return 0
    samples = array_in(cube, "sample_block").shape[0]
    group = cube.require_group("tiles")
    keys = _array(group, "keys", "uint8", ("tile", "part", "byte"), (tile + 1, len(parts), 32), (64, len(parts), 32), 0)
    slots = slice(tile * TILE[0], (tile + 1) * TILE[0])
    ledger = group_in(cube, "ledger")
    raw = np.asarray(array_in(ledger, "key")[slots])
    done = np.asarray(array_in(ledger, "state")[slots]) == DONE
    rows = np.arange(slots.start, slots.stop)
    for part in todo:
        i = parts.index(part)
        for name in names[i]:
            source = array_in(cube, name)
            shape = (slots.stop, samples)
            target = _array(group, name, source.dtype, ("slot", "sample"), shape, TILE, source.fill_value)
            for start in range(0, samples, BLOCK_COLUMNS):
                columns = slice(start, min(start + BLOCK_COLUMNS, samples), 1)
                cells = np.empty((TILE[0], columns.stop - start), source.dtype)
                read(source, rows, columns, cells, np.arange(TILE[0]))
                target[slots, start : columns.stop] = cells
        keys[tile, i] = _digest(raw[:, :, i], done[:, :, i], names[i])
    return len(todo)


def _array(
    group: zarr.Group,
    name: str,
    dtype: Any,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    fill: Any,
) -> zarr.Array[Any]:
    """Return an array of the tiles, made if it is not there, and at least as long as ``shape`` in every dim."""
    if name not in group:
        group.create_array(
            name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill, dimension_names=dims, compressors=None
        )
    array = array_in(group, name)
    if any(have < need for have, need in zip(array.shape, shape, strict=True)):
        array.resize(tuple(map(max, array.shape, shape)))
    return array
