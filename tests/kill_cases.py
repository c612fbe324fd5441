"""An engine in a process of its own that says when it begins and which rows it computed, and how it is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Process = subprocess.Popen[str]


def started(code: str, *arguments: object, environment: Mapping[str, str] = {}) -> Process:
    """Start a script that prints ``begin``, and then a line per row."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | dict(environment))


def finish(process: Process) -> list[str]:
    """Wait for it to end well, and return its lines after ``begin``."""
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    return out.splitlines()[1:]


def kill(start: Callable[[], Process], seconds: float) -> None:
    """Start it, and kill it so long after it has begun."""
    process = start()
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def write_fake_checkpoints(home: Path, count: int, salt: str = "") -> None:
    """Write files that stand for checkpoints, for engines that do not read them."""
    (home / "checkpoints").mkdir(exist_ok=True)
    for epoch in range(count):
        (home / "checkpoints" / f"epoch_{epoch}.pt").write_text(f"{salt}{epoch}")
