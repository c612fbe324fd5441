"""Every notebook runs from top to bottom, and is committed without output."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT_S = 300

# Read by each Python that a notebook starts, its kernel too: it writes down now and then what each of its threads is
# at, for when a cell is given up.
STACKS = """
import faulthandler, os, pathlib, sys
path = pathlib.Path(os.environ["STACKS"], f"{os.getpid()}.txt")
faulthandler.dump_traceback_later(float(os.environ["STACKS_S"]), repeat=True, file=path.open("w"))
path.with_suffix(".command").write_text(" ".join(sys.orig_argv))
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook__runs(path, tmp_path, monkeypatch, prefect_server):
    nbformat = pytest.importorskip("nbformat", reason="needs the dev extra")
    nbclient = pytest.importorskip("nbclient", reason="needs the dev extra")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # waits for no other test
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel sets its own
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), f"clear the outputs of {path.name}"
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    (stacks / "sitecustomize.py").write_text(STACKS)
    monkeypatch.setenv("STACKS", str(stacks))
    monkeypatch.setenv("STACKS_S", str(TIMEOUT_S / 5))
    monkeypatch.setenv("PYTHONPATH", str(stacks), prepend=os.pathsep)
    client = nbclient.NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    try:
        client.execute()
    except nbclient.exceptions.CellTimeoutError as error:
        for stack in stacks.glob("*.txt"):
            if last := stack.read_text().rpartition("Timeout")[2]:
                error.add_note(f"{stack.with_suffix('.command').read_text()}{last}")
        raise
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures
