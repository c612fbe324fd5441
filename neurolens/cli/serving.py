"""The Prefect server that a run's flows talk to: one's own, or a temporary one that ends with the run."""

import atexit
import contextlib
import os
import signal
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
    try:
        server.start()
    except RuntimeError as error:
        raise ServerError(
            f"no temporary Prefect server could be started: {error}; start one with `prefect server start` and set "
            "PREFECT_API_URL to the address it prints"
        ) from error
    if server.server_process is not None:
        _end_with_this_process(server.server_process.pid, server.stop)

    def stop(signum: int, frame: object) -> None:
        clear()
        complain(STOPPED_TEXT)
        server.stop()
        os._exit(STOPPED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
