"""An engine in a process of its own that says when it begins and which rows it computed, and how it is killed.

Engines are forked off one process that has imported what is slow to import and has run none of it, so that each starts
at once and is otherwise as new as a Python of its own.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

FORKS = multiprocessing.get_context("forkserver")
IMPORTED = (
    "pytest",
    "sklearn.cluster",
    "sklearn.datasets",
    "neurolens.attribution.measure",
    "neurolens.backend",
    "neurolens.checkpoints",
    "neurolens.clusters.measure",
    "neurolens.data",
    "neurolens.dissection.cube",
    "neurolens.effects.measure",
    "neurolens.models",
    "neurolens.pairs.code_cube",
    "neurolens.pairs.pair_cube",
    "neurolens.pairs.pool_cube",
    "neurolens.pairs.text_cube",
    "neurolens.rows",
    "neurolens.samples.measure",
)
TIMEOUT_S = 180


class Engine(NamedTuple):
    process: BaseProcess
    said: TextIO


def started(code: str, *arguments: object, environment: Mapping[str, str] = {}) -> Engine:
    """Start a script that prints ``begin``, and then a line per row."""
    ready()
    heard, says = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_run, args=(code, [str(word) for word in arguments], dict(environment), says))
    process.start()
    says.close()
    with heard:
        return Engine(process, os.fdopen(os.dup(heard.fileno()), encoding="utf-8"))


def ready() -> None:
    """See that the process is there that engines are forked off, once per session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        FORKS.set_forkserver_preload(list(IMPORTED))
        forkserver.ensure_running()


def _run(code: str, arguments: list[str], environment: dict[str, str], says: Connection) -> None:
    """Be the script: with its arguments, its environment, and what it prints."""
    signal.alarm(TIMEOUT_S)
    os.dup2(says.fileno(), sys.stdout.fileno())
    says.close()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    exec(compile(code, "<engine>", "exec"), {"__name__": "__main__"})


def finish(engine: Engine) -> list[str]:
    """Wait for it to end well, and return its lines after ``begin``."""
    return timed(engine)[0]


def timed(engine: Engine) -> tuple[list[str], float]:
    """Wait for it to end well, and return its lines after ``begin`` and the seconds that it took from there."""
    with engine.said:
        assert engine.said.readline() == "begin\n"
        began = time.perf_counter()
        lines = engine.said.read().splitlines()
    engine.process.join()
    assert engine.process.exitcode == 0
    return lines, time.perf_counter() - began


def kill(start: Callable[[], Engine], seconds: float) -> None:
    """Start it, and kill it so long after it has begun."""
    process, said = start()
    with said:
        assert said.readline() == "begin\n"
        time.sleep(seconds)
        process.kill()
        process.join()


def write_fake_checkpoints(home: Path, count: int, salt: str = "") -> None:
    """Write files that stand for checkpoints, for engines that do not read them."""
    (home / "checkpoints").mkdir(exist_ok=True)
    for epoch in range(count):
        (home / "checkpoints" / f"epoch_{epoch}.pt").write_text(f"{salt}{epoch}")
