"""Ctrl-C ends a run whatever its threads are at, and its temporary Prefect server with it."""

import signal
import socket
import subprocess
import sys

import pytest

from neurolens.cli import serving
from neurolens.cli.console import STOPPED

# Each is stopped by Ctrl-C and says so; what it would do next is to wait for ever.
ALARM = """
class Alarm(BaseException):
    pass

def alarm(signum, frame):
    raise Alarm

def stop():
    signal.raise_signal(signal.SIGALRM)
    print("stopped", flush=True)

signal.signal(signal.SIGALRM, alarm)
with serving._stopping(stop):
    try:
        signal.raise_signal(signal.SIGINT)
        threading.Event().wait()
    except Alarm:
        pass
    threading.Event().wait()
"""
LOCK = """
lock = threading.Lock()

def stop():
    with lock:
        print("stopped", flush=True)

with serving._stopping(stop):
    with lock:
        signal.raise_signal(signal.SIGINT)
    threading.Event().wait()
"""
FOREVER = """
def stop():
    print("stopped", flush=True)
    threading.Event().wait()

serving.STOP_S = 0.1
with serving._stopping(stop):
    signal.raise_signal(signal.SIGINT)
    threading.Event().wait()
"""
ENDED = """
with serving._stopping(lambda: print("stopped", flush=True)):
    signal.raise_signal(signal.SIGINT)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(ALARM, id="an alarm raises meanwhile"),
        pytest.param(LOCK, id="the main thread held a lock"),
        pytest.param(FOREVER, id="stopping waits for ever"),
        pytest.param(ENDED, id="the run was at its end"),
    ],
)
def test_stopping__ends_the_process(script: str) -> None:
    code = f"import signal, threading\nfrom neurolens.cli import serving\n{script}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (STOPPED, "stopped\n"), ended.stderr


def test_stopping__leaves_the_handler_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with serving._stopping(lambda: None):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_end__kills_a_server_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"deaf\n"
        monkeypatch.setattr(serving, "TERMINATE_S", 0.1)
        serving._end(server)
        assert server.wait(30) == -signal.SIGKILL


def test_serving__asks_the_system_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings

    ports = []
    monkeypatch.setattr(SubprocessASGIServer, "_instances", {})
    monkeypatch.setattr(SubprocessASGIServer, "start", lambda server: ports.append(server.port))
    monkeypatch.setattr(serving, "_free_port", lambda: 12345)
    monkeypatch.setattr(serving, "_send_the_rest", lambda: None)
    with (
        temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: True}, restore_defaults={PREFECT_API_URL}),
        serving.serving(lambda: None),
    ):
        pass
    assert ports == [12345]


def test_free_port__may_be_listened_at() -> None:
    port = serving._free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        assert server.getsockname()[1] == port > 1023
