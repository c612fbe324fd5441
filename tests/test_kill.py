"""Kill −9 at random moments, and two runs at once: nothing is lost, nothing is computed twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import conftest
import numpy as np
import psutil
import pytest
from kill_cases import Engine, finish, kill, started, write_fake_checkpoints

from neurolens import rows
from neurolens.rows import working
from neurolens.store import open_store
from neurolens.study import load_study

MakeStudy = Callable[..., Path]
KILLS = 20
ROWS = 24

# The engine in a process of its own, with a measurement that takes no torch, so that it starts in a second. It says
# when it begins, and which rows it computed.
ENGINE = """
import hashlib, sys
import numpy as np
from neurolens import rows, schema
from neurolens.rows import working
from neurolens.study import load_study
from pathlib import Path

def measure_row(materials, row, parts, samples):
    seed = int(hashlib.sha256((row.digest + samples.ids[0]).encode()).hexdigest()[:8], 16)
    drawn = np.random.default_rng(seed)
    values = {}
    for part in parts:
        for variable in schema.SAMPLES.part(part).variables:
            values[variable.name] = (drawn.random(len(samples)) * 9).astype(variable.dtype)
    return values

working.measure_row = measure_row
working.provenance = lambda materials, row: {"checkpoint": str(row.path)}
working._Bench.set_threads = lambda self: None
rows.gathering.device = lambda compute: "cpu"

class Network:
    description, module = {"name": "none"}, None

class Models:
    build = staticmethod(lambda table: Network())

import neurolens
sys.modules["neurolens.models"] = neurolens.models = Models

class Measure:
    parts = staticmethod(lambda table: ("forward", "input_gradient"))
    key_config = staticmethod(lambda table, part: {"version": 1})

sys.modules["neurolens.samples.measure"] = Measure
study = load_study(sys.argv[1])
materials = rows.gather(study)
print("begin", flush=True)
store = rows.open_for_writing(study)
todo = rows.plan(materials, store).todo
for result in rows.run_rows(materials, todo, store):
    print(result.outcome, *result.row.id, flush=True)
"""


# What the process that engines are forked off has: its other threads, and the files that it has open.
PARENT = """
import os, psutil
from pathlib import Path
print("begin")
parent = psutil.Process(os.getppid())
for thread in parent.threads():
    if thread.id != parent.pid:
        print(Path(f"/proc/{parent.pid}/task/{thread.id}/comm").read_text().strip())
for file in parent.open_files():
    print(file.path)
"""


def engine(path: Path) -> Engine:
    return started(ENGINE, path)


def change(home: Path) -> None:
    """Change some checkpoints, and add samples: rows are overwritten, and a block is appended."""
    write_fake_checkpoints(home, ROWS // 2, salt="changed ")
    conftest.write_samples(home, np.arange(40))


def test_started__forks_off_a_process_that_has_run_nothing(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=0)
    write_fake_checkpoints(path.parent, 1)
    assert len(finish(engine(path))) == 1
    # pyarrow's allocator alone starts a thread where it is imported: no store was opened, and no operation run
    assert set(finish(started(PARENT))) <= {"jemalloc_bg_thd"}


def test_run_rows__survives_kills_at_random_moments(make_study: MakeStudy, stores_equal: Callable[..., None]) -> None:
    paths = [make_study(name, checkpoints=0) for name in ("killed", "undisturbed")]
    for path in paths:
        write_fake_checkpoints(path.parent, ROWS)
    killed, undisturbed = paths
    finish(engine(undisturbed))
    change(undisturbed.parent)
    finish(engine(undisturbed))

    moments = random.Random(0)
    for number in range(KILLS):
        if number == KILLS // 2:
            finish(engine(killed))
            change(killed.parent)
        kill(lambda: engine(killed), moments.uniform(0, 0.25))
    finish(engine(killed))
    assert finish(engine(killed)) == []
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)


def test_run_rows__shares_the_rows_between_two_runs(make_study: MakeStudy, stores_equal: Callable[..., None]) -> None:
    paths = [make_study(name, checkpoints=0) for name in ("shared", "alone")]
    for path in paths:
        write_fake_checkpoints(path.parent, ROWS)
    shared, alone = paths
    finish(engine(alone))
    both = [engine(shared), engine(shared)]
    lines = [finish(process) for process in both]
    computed = Counter(line for told in lines for line in told if line.startswith("computed"))
    assert len(computed) == ROWS
    assert set(computed.values()) == {1}
    assert all(len(told) <= ROWS for told in lines)
    stores_equal(load_study(shared).store.url, load_study(alone).store.url)
    messages = [s.message for s in open_store(load_study(shared).store.url, readonly=True).history()]
    assert len(messages) == len(set(messages))


def test_run_rows__takes_over_the_rows_of_a_run_that_died(make_study: MakeStudy) -> None:
    path = make_study(checkpoints=2)
    study = load_study(path)
    materials, store = rows.gather(study), rows.open_for_writing(study)
    rows.prepare(materials, store)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from neurolens.store import open_store\n"
            "with open_store(sys.argv[1]).claim('samples', [(0, 0)]):\n    print('held', flush=True); time.sleep(60)",
            study.store.url,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"

    def kill_holder(result: rows.Result) -> None:
        if result.row.position == 1:
            holder.kill()
            holder.wait()

    results = rows.run_rows(materials, rows.plan(materials, store).todo, store, report=kill_holder)
    holder.stdout.close()
    assert sorted((r.row.position, r.outcome) for r in results) == [(0, "computed"), (1, "computed")]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_neurolens_run__survives_a_kill_and_stops_at_once_on_ctrl_c(
    make_study: MakeStudy, stores_equal: Callable[..., None], tmp_path: Path, how: signal.Signals
) -> None:
    """A whole ``neurolens run``, Prefect included, is stopped once it has written rows, and run again."""
    stopped, undisturbed = (make_study(name, checkpoints=12) for name in ("stopped", "undisturbed"))
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect"), "OMP_NUM_THREADS": "1"}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "neurolens.cli", "run"]
    process = subprocess.Popen(
        [*command, str(stopped)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    url = load_study(stopped).store.url
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if (Path(url) / "refs").exists() and len(open_store(url, readonly=True).ledger("samples")) >= 2:
            break
        time.sleep(0.01)
    servers = psutil.Process(process.pid).children(recursive=True)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.kill()
    assert process.wait(20) == (130 if how == signal.SIGINT else -how)
    assert servers
    _, alive = psutil.wait_procs(servers, timeout=30)
    for server in alive:
        server.kill()
    assert not alive, "the temporary server outlived the run"
    done = len(open_store(url, readonly=True).ledger("samples"))
    assert 2 <= done < 12
    again = subprocess.run([*command, str(stopped)], env=environment, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    assert f"{12 - done} rows computed, {done} up to date" in again.stdout
    study = load_study(undisturbed)
    materials = rows.gather(study)
    rows.run_rows(materials, rows.plan(materials, None).todo, rows.open_for_writing(study))
    stores_equal(url, study.store.url)


@pytest.mark.parametrize("workers", [1, 3])
def test_run_rows__stops_after_the_rows_at_hand(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    study = load_study(make_study(checkpoints=12))
    materials, store = rows.gather(study), rows.open_for_writing(study)
    measure = working.measure_row

    def interrupted(result: rows.Result) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(working, "measure_row", lambda *args: (time.sleep(0.02), measure(*args))[1])
    with pytest.raises(KeyboardInterrupt):
        rows.run_rows(materials, rows.plan(materials, store).todo, store, report=interrupted, workers=workers)
    done = 12 - len(rows.plan(materials, store).todo)
    assert 1 <= done <= 2 * workers
