"""The four commands of the README, for real: server, pool, deploy, worker."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import conftest
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from neurolens import rows
from neurolens.study import load_study

FILE = Path(__file__).parent.parent / "deployments" / "prefect.yaml"
COMPOSE = FILE.with_name("compose.yaml")
INTERVAL = 15


def deployment(name: str) -> dict[str, Any]:
    (found,) = (d for d in yaml.safe_load(FILE.read_text())["deployments"] if d["name"] == name)
    return dict(found)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("refresh", {"interval", "cron"}),
        ("concepts", {"interval"}),
        ("attributions", {"cron"}),
        ("pairs", {"cron"}),
    ],
)
def test_prefect_yaml__has_schedules_and_runs_one_at_a_time(name: str, kinds: set[str]) -> None:
    found = deployment(name)
    assert found["entrypoint"] == "neurolens.flows.refresh:refresh"
    assert {key for schedule in found["schedules"] for key in schedule} >= kinds
    assert found["concurrency_limit"] == 1
    assert found["work_pool"]["name"] == "local"


@pytest.mark.parametrize("name", ["refresh", "concepts", "attributions", "pairs"])
def test_prefect_yaml__names_parameters_of_the_flow(name: str) -> None:
    from neurolens.flows.refresh import refresh

    assert set(deployment(name)["parameters"]) <= set(refresh.parameters.properties)


def test_compose_yaml__has_server_database_and_worker() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert {"database", "server", "worker"} == set(services)
    assert services["database"]["image"].startswith("postgres:")
    assert "asyncpg" in services["server"]["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"]
    assert services["worker"]["environment"]["PREFECT_API_URL"] == "http://server:4200/api"


@pytest.mark.server
def test_refresh__a_scheduled_run_measures_a_checkpoint_added_meanwhile(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_study(checkpoints=2)
    study = load_study(path)
    materials = rows.gather(study)
    store = rows.open_for_writing(study)
    rows.run_rows(materials, rows.plan(materials, store).todo, store)
    before = {row.position: row for row in store.ledger("samples").rows()}

    settings = yaml.safe_load(FILE.read_text())
    settings["deployments"] = [only] = [d for d in settings["deployments"] if d["name"] == "refresh"]
    only["parameters"]["file"] = path.name
    only["schedules"] = [{"interval": INTERVAL}, *[s for s in only["schedules"] if "cron" in s]]
    chosen = path.parent / "prefect.yaml"
    chosen.write_text(yaml.safe_dump(settings))

    api = f"http://127.0.0.1:{free_port()}/api"
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    port = api.split(":")[2].partition("/")[0]
    with running(["server", "start", "--host", "127.0.0.1", "--port", port], environment, path.parent):
        wait_for(lambda: healthy(api), seconds=180)
        command("work-pool", "create", "local", "--type", "process", environment=environment, folder=path.parent)
        conftest.write_checkpoint(path.parent, 2)
        with running(["worker", "start", "--pool", "local"], environment, path.parent):  # starts while it is deployed
            deploy = ("--no-prompt", "deploy", "--all", "--prefect-file", str(chosen))
            command(*deploy, environment=environment, folder=path.parent)
            finished = wait_for(lambda: [run for run in runs(api) if run.state and run.state.is_final()], seconds=180)
    assert finished[0].state is not None
    assert finished[0].state.is_completed(), finished[0].state.message
    assert finished[0].auto_scheduled
    assert "1 rows computed, 2 up to date" in str(finished[0].state.message)
    after = {row.position: row for row in store.ledger("samples").rows()}
    assert sorted(after) == [0, 1, 2]
    assert {position: after[position].time for position in before} == {p: row.time for p, row in before.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def runs(api: str) -> list[FlowRun]:
    async def read() -> list[FlowRun]:
        async with get_client() as client:
            return list(await client.read_flow_runs())

    with temporary_settings({PREFECT_API_URL: api}):
        found = asyncio.run(read())
    return sorted((run for run in found if run.deployment_id and run.start_time), key=lambda run: run.start_time)


def command(*words: str, environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def running(words: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Run a prefect command until the block is left; it is stopped by SIGINT, and must then be gone."""
    log = folder / f"{words[0]}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *words],
            env=environment,
            cwd=folder,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        except BaseException:
            print(log.read_text()[-4000:])  # noqa: T201  (what pytest shows with a failure)
            raise
        finally:
            for how in (signal.SIGINT, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, how)
                    try:
                        process.wait(20)
                    except subprocess.TimeoutExpired:
                        continue
            process.wait()


def wait_for(found: Callable[[], Any], *, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.5)
    raise AssertionError(f"nothing came within {seconds} s")
