"""Shared by every test: no network, no telemetry, few threads."""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers share the cores
    for size in ("COLUMNS", "LINES"):  # of no terminal
        os.environ.pop(size, None)

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Truth = dict[str, np.ndarray]

# The files whose tests last longest, the longest first: where several workers share the tests, these are started first,
# so that none of them is what all others wait for at the end.
LONG = (
    "test_notebooks.py",
    "test_cli.py",
    "test_kill.py",
    "test_deployment.py",
    "test_kill_attributions.py",
    "test_kill_cubes.py",
    "test_kill_concepts.py",
    "test_kill_pairs.py",
    "test_rows_attributions.py",
    "test_flows.py",
    "test_cli_units.py",
    "test_training.py",
    "test_rows_concepts.py",
    "test_plot_attributions.py",
    "test_seeds.py",
    "test_report_concepts.py",
    "test_report_attributions.py",
    "test_concepts_out_of_core.py",
    "test_store_kill.py",
    "test_store_s3.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker a file at a time in the order above, but each of the notebooks by itself."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return nodeid if file.endswith("test_notebooks.py") else file

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Truth]:
    """Return a function that writes a store of random numbers and returns what opening it must give."""
    return _make_store


@pytest.fixture(scope="session")
def stores_equal() -> Callable[..., None]:
    """Return a function that asserts: opened variables, coordinates and keys of two stores are equal, byte for byte."""
    return _assert_stores_equal


def _make_store(
    url: Path | str,
    *,
    positions: Sequence[int] = (3, 0, 2, 1),
    blocks: Sequence[int] = (12, 8),
    parts: Sequence[str] = ("forward", "input_gradient"),
    failed: Sequence[tuple[int, int, str]] = (),
    absent: Sequence[tuple[int, int, str]] = (),
    classes: int = 3,
    series: str = "epoch",
    exposure: dict[int, list[int]] | None = None,
    seed: int = 0,
) -> Truth:
    """Write rows in the order of ``positions``; (position, block, part) in ``failed`` or ``absent`` is not measured.

    Returned are the variables, (series, sample) in order of the series, float32 with NaN where not measured.
    """
    from neurolens import schema
    from neurolens.store import SampleCoords, open_store

    cube, n = schema.SAMPLES, sum(blocks)
    rng = np.random.default_rng(seed)
    store = open_store(url, create=True)
    ids = np.asarray([f"s{i:05d}" for i in range(n)])
    labels = rng.integers(0, classes, n)
    names = tuple(f"class {c}" for c in range(classes))
    for end in np.cumsum(blocks):
        samples = SampleCoords(ids[:end], labels[:end], names, {"split": np.asarray(["train"] * int(end))})
        settings = {"data": "random", "model": {"name": "none"}, "parts": {part: {"version": 1} for part in parts}}
        store.prepare(cube, run="random", series=series, samples=samples, settings=settings, exposure=exposure)
    wanted = {v.name: v for part in parts for v in cube.part(part).variables}
    truth = {name: np.full((len(positions), n), np.nan, "float32") for name in wanted}
    starts = np.concatenate([[0], np.cumsum(blocks)])
    other = "step" if series == "epoch" else "epoch"
    for position in positions:
        at = {series: position, other: None if position == 0 else position * 100}
        if exposure is not None and series == "step":
            at[other] = position * 100
        for block, size in enumerate(blocks):
            keys = {part: hashlib.sha256(f"{seed} {position} {block} {part}".encode()).hexdigest() for part in parts}
            skipped = {p for e, b, p in (*absent, *failed) if (e, b) == (position, block)}
            values: dict[str, Any] = {}
            for part in (p for p in parts if p not in skipped):
                for variable in cube.part(part).variables:
                    integer = np.dtype(variable.dtype).kind == "i"
                    drawn = rng.integers(0, 2, size) if integer else rng.random(size)
                    values[variable.name] = drawn.astype(variable.dtype)
                    extent = slice(starts[block], starts[block] + size)
                    truth[variable.name][sorted(positions).index(position), extent] = values[variable.name]
            done = {part: key for part, key in keys.items() if part not in skipped}
            common: dict[str, Any] = {"positions": at, "provenance": {"checkpoint": f"{series}_{position}.pt"}}
            if done:
                store.write_row(cube, (position, block), values=values, keys=done, seconds=0.5, **common)
            for e, b, part in failed:
                if (e, b) == (position, block):
                    store.write_failure(cube, (position, block), keys={part: keys[part]}, error="broken", **common)
    return truth


def _assert_stores_equal(one: Path | str, two: Path | str) -> None:
    from neurolens.backend import open_at
    from neurolens.store.ledger import read_ledger

    first, second = open_at(one), open_at(two)
    assert first.cubes == second.cubes
    for cube in first.cubes:
        a, b = (_contents(url, cube) for url in (one, two))
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dims == b[name].dims, name
            assert a[name].dtype == b[name].dtype, name
            assert _bytes(a[name].values) == _bytes(b[name].values), name
        rows = [
            [(r.position, r.block, r.part, r.state, r.key, r.reading) for r in read_ledger(s.root, cube, "").rows()]
            for s in (first, second)
        ]
        assert rows[0] == rows[1]


def _contents(url: Path | str, cube: str) -> Any:
    import xarray as xr

    return xr.open_dataset(url, group=cube, engine="neurolens").variables


def _bytes(values: np.ndarray) -> bytes:
    return repr(values.tolist()).encode() if values.dtype.kind in "TO" else np.ascontiguousarray(values).tobytes()


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Run flows against one temporary Prefect server with a database of its own; it takes seconds to start.

    Its address is for processes of their own, as PREFECT_API_URL.
    """
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield str(PREFECT_API_URL.value())


STUDY = """name = "tiny"
[model]
name = "digits_convnet"
[data]
source = "arrays"
root = "data.npz"
split = "all"
[compute]
device = "cpu"
threads = 1
[samples]
"""


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a study with its data and untrained checkpoints, and returns the study's path."""

    def make(folder: str = "run", *, checkpoints: int = 3, samples: int = 24, text: str = STUDY) -> Path:
        home = tmp_path / folder
        home.mkdir(exist_ok=True)
        write_samples(home, np.arange(samples))
        for epoch in range(checkpoints):
            write_checkpoint(home, epoch)
        path = home / "study.toml"
        path.write_text(text)
        return path

    return make


def write_samples(home: Path, positions: np.ndarray, *, change: int | None = None) -> None:
    """Write some of scikit-learn's digits as the data of a study; ``change`` is the position of an altered one."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[positions]
    if change is not None:
        images[change, 0, 0] += 1
    np.savez(home / "data.npz", images=images, labels=digits.target[positions])


def write_checkpoint(home: Path, epoch: int, *, seed: int | None = None, classes: int = 10) -> Path:
    """Write an untrained network, whose weights are drawn from ``seed`` (default: the epoch), as a checkpoint."""
    import torch

    from neurolens import models
    from neurolens.study import Model

    path = home / "checkpoints" / f"epoch_{epoch}.pt"
    path.parent.mkdir(exist_ok=True)
    network = models.build(Model(name="digits_convnet", classes=classes), seed=epoch if seed is None else seed)
    torch.save(network.module.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tiny GPT-NeoX run with six step checkpoints as folders (`LanguageRun`), shared: do not change it."""
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    from language_models import train_language_model

    return train_language_model(tmp_path_factory.mktemp("language") / "run")
