"""The Prefect server that a run's flows talk to: one's own, or a temporary one that ends with the run."""

import atexit
import contextlib
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

from neurolens.cli.console import STOPPED, STOPPED_TEXT, complain
from neurolens.errors import ServerError

QUIET_PREFECT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the default of 20 s is too short on a busy machine
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the command tells what went wrong itself
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}

TERMINATE_S = 5.0  # for the temporary server to end well
STOP_S = 8.0  # for all that is done on Ctrl-C
DRAIN_S = 10.0  # for what Prefect has still to tell at the end of a run


def prepare() -> None:
    """Set what Prefect reads from the environment when it is imported, where the user has not."""
    os.environ.update({name: value for name, value in QUIET_PREFECT.items() if name not in os.environ})


def of_ones_own() -> bool:
    """Tell whether a Prefect server is named: by PREFECT_API_URL, or by the Prefect profile in use."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is not None


@contextlib.contextmanager
def serving(clear: Callable[[], None]) -> Iterator[None]:
    """Have a server for the flows of this process; a temporary one ends with it, even if it is killed.

    Ctrl-C then ends this process at once, after ``clear``: it reaches the temporary server too, and without that one
    Prefect would try in vain, for minutes, to tell it of the end. Nothing is lost: a row is written whole or not at
    all.

    Raises
    ------
    ServerError
        If the server that is named does not answer, or a temporary one cannot be started.
    """
    if of_ones_own():
        _ask()
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    if not get_current_settings().server.ephemeral.enabled:
        raise ServerError(
            "PREFECT_SERVER_EPHEMERAL_ENABLED forbids a temporary Prefect server, and no other one is named; unset it, "
            "or set PREFECT_API_URL to the address of yours"
        )
    server = SubprocessASGIServer()
    if not server.running:
        server.port = _free_port()
    try:
        server.start()
    except RuntimeError as error:
        raise ServerError(
            f"no temporary Prefect server could be started: {error}; start one with `prefect server start` and set "
            "PREFECT_API_URL to the address it prints"
        ) from error
    process = server.server_process
    if process is not None:
        _end_with_this_process(process.pid, server.stop)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop() -> None:
        clear()
        complain(STOPPED_TEXT)
        if process is not None:
            _end(process)

    with _stopping(stop):
        try:
            yield
        finally:
            _send_the_rest()


@contextlib.contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C call ``stop`` and end this process, whatever its threads are at.

    A thread that waits for it does so: what runs in a signal's handler may wait for ever, for a lock that the main
    thread held when it was interrupted, and may be interrupted itself, by an exception from another handler.
    """
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whose put takes no lock that its caller may hold

    def wait() -> None:
        if asked.get():
            helper = threading.Thread(target=stop, daemon=True)
            helper.start()
            helper.join(STOP_S)
            os._exit(STOPPED)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    before = signal.signal(signal.SIGINT, lambda signum, frame: asked.put(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        asked.put(False)
        waiting.join()  # if it was asked to stop, the process ends here


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the temporary server; if it does not end well in time, by force."""
    process.terminate()
    try:
        process.wait(TERMINATE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _send_the_rest() -> None:
    """Send what Prefect still has to tell its server, which it otherwise does when the interpreter ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=DRAIN_S)


def _free_port() -> int:
    """Return a port that nobody listens at; one that Prefect chose, of a thousand, two runs begun at once may share."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _ask() -> None:
    """Raise ServerError unless the server that is named answers."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise ServerError(
            f"no Prefect server answers at {get_current_settings().api.url} ({error}); start it with "
            "`prefect server start`, or unset PREFECT_API_URL (and `prefect config unset PREFECT_API_URL`) to run with "
            "a temporary one"
        )


def _end_with_this_process(pid: int, stop: Callable[[], None]) -> None:
    """Have a guard end a process when this one is gone: the guard reads a pipe that the kernel then closes."""
    if os.name != "posix":
        return
    command = ["/bin/sh", "-c", 'cat >/dev/null; kill "$0" 2>/dev/null', str(pid)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def end() -> None:
        stop()
        guard.communicate()

    atexit.register(end)
