"""Kill −9 while pools and pairs are measured by real networks, and two runs at once: stores come out the same."""

import random
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import codes_study
import numpy as np
import pytest
from conftest import write_samples
from kill_cases import FORKS, ready
from pairs_study import TEXT, run, write_checkpoint, write_study

from neurolens.pairs import pair_cube
from neurolens.study import load_study

KILLS = 4
BLOCK = 12  # of 24 images, later 33
CUBES = ("pools", "pairs")


def measure(path: Path, cubes: tuple[str, ...], said: Connection) -> None:
    """Bring cubes up to date, in small blocks; say when it begins, and which rows were computed."""
    pair_cube.block_size = lambda table, axes: BLOCK  # type: ignore[assignment]
    said.send("begin")
    for cube in cubes:
        for result in run(path, cube):
            said.send((result.outcome, cube, *result.row.id))
    said.close()


def started(path: Path, *cubes: str) -> tuple[BaseProcess, Connection]:
    ready()
    heard, said = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=measure, args=(path, cubes or CUBES, said))
    process.start()
    said.close()
    assert heard.recv() == "begin"
    return process, heard


def finish(path: Path, *cubes: str) -> list[tuple[str, str, int, int]]:
    """Run to the end, and return which rows were measured."""
    return finished(*started(path, *cubes))


def finished(process: BaseProcess, heard: Connection) -> list[tuple[str, str, int, int]]:
    found = []
    while True:
        try:
            found.append(heard.recv())
        except EOFError:
            break
    process.join()
    assert process.exitcode == 0
    return found


def kill(path: Path, seconds: float) -> None:
    process, heard = started(path)
    time.sleep(seconds)
    process.kill()
    process.join()
    heard.close()


@pytest.fixture
def studies(tmp_path: Path) -> tuple[Path, Path]:
    return tuple(write_study(tmp_path / name, checkpoints=2) for name in ("one", "other"))  # type: ignore[return-value]


def change(path: Path) -> None:
    """Change a checkpoint, and add images."""
    write_checkpoint(path, 1, seed=7)
    write_samples(path.parent, np.arange(33))


def test_run_rows__of_pools_and_pairs_survive_kills_at_random_moments(
    studies: tuple[Path, Path], stores_equal: Callable[..., None]
) -> None:
    killed, undisturbed = studies
    first = started(undisturbed)
    began = time.perf_counter()
    assert len(finished(*first)) == 2 * (1 + 2)
    lasted = time.perf_counter() - began
    change(undisturbed)
    # pools of all images; of pairs, the images that are new, and all of the checkpoint that changed
    assert len(finish(undisturbed)) == 2 + 1 + 3
    moments = random.Random(1)
    for number in range(KILLS):
        if number == KILLS // 2:
            finish(killed)
            change(killed)
        kill(killed, moments.uniform(0, lasted))
    finish(killed)
    assert finish(killed) == []
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)


def test_run_rows__of_pools_and_pairs_are_shared_between_two_runs(
    studies: tuple[Path, Path], stores_equal: Callable[..., None]
) -> None:
    shared, alone = studies
    finish(alone)
    both = [started(shared, *CUBES), started(shared, *reversed(CUBES))]
    computed = Counter(row for one in both for row in finished(*one) if row[0] == "computed")
    assert len(computed) == 2 * (1 + 2)
    assert set(computed.values()) == {1}
    stores_equal(load_study(shared).store.url, load_study(alone).store.url)


def test_run_rows__of_texts_are_taken_up_where_they_were_killed(
    tmp_path: Path, stores_equal: Callable[..., None]
) -> None:
    text = TEXT.partition("[pools]")[0] + '[texts]\nblock = 3\n[texts.sets.classes]\nknown = "classes"\n'
    killed, undisturbed = (write_study(tmp_path / name, text=text) for name in ("one", "other"))
    rows = [result.row.id for result in run(undisturbed, "texts")]
    assert len(rows) == 2 * 4
    process, heard = started(killed, "texts")
    time.sleep(random.Random(2).uniform(0, 1))
    process.kill()
    process.join()
    heard.close()
    assert {result.row.id for result in run(killed, "texts")} <= set(rows)
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)


def test_run_rows__of_codes_are_taken_up_where_they_were_killed(
    tmp_path: Path, stores_equal: Callable[..., None]
) -> None:
    text = codes_study.TEXT.replace("block = 24", "block = 12")
    killed, undisturbed = (write_study(tmp_path / name, checkpoints=1, text=text) for name in ("one", "other"))
    for path in (killed, undisturbed):
        run(path, "texts")
    rows = [result.row.id for result in run(undisturbed, "codes")]
    assert len(rows) == 6
    process, heard = started(killed, "codes")
    time.sleep(random.Random(3).uniform(0.5, 1.5))
    process.kill()
    process.join()
    heard.close()
    assert {result.row.id for result in run(killed, "codes")} <= set(rows)
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)
