"""Kill −9 in the middle of rows of units, activations and concepts, and two runs at once: stores come out the same."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import conftest
import numpy as np
import pytest
from kill_cases import Engine, finish, kill, started, write_fake_checkpoints

from neurolens.study import load_study

MakeStudy = Callable[..., Path]
CUBES = ("units", "activations", "concepts")
KILLS = 8
CHECKPOINTS = 12
BLOCKS = 4  # of 24 samples, at most 7 in each

STUDY = conftest.STUDY.replace(
    "[samples]\n",
    "[units]\nhistogram = true\nclasses = true\ntop = 2\n[activations]\ndtype = 'float32'\n[concepts]\nroot = '.'\n",
)

# The engine in a process of its own, with measurements that take no torch: what they return is drawn from the
# checkpoint and the samples. It says when it begins, and which rows it computed.
ENGINE = """
import hashlib, sys
import numpy as np
from neurolens import rows, schema
from neurolens.rows import working
from neurolens.store import Axis
from neurolens.study import load_study

UNITS = 300

def measure_row(materials, row, parts, samples):
    cube = schema.CUBES[materials.cube]
    sizes = {dim: len(axis.ids) for dim, axis in materials.axes.items()}
    if materials.by_sample:
        sizes["sample"] = len(samples)
    values = {}
    for part in parts:
        for variable in cube.part(part).variables:
            seed = hashlib.sha256("|".join([row.digest, samples.ids[0], samples.ids[-1], variable.name]).encode())
            drawn = np.random.default_rng(int(seed.hexdigest()[:8], 16))
            shape = [sizes[dim] for dim in variable.dims[1:]]
            values[variable.name] = (drawn.random(shape) * 9).astype(variable.dtype)
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

each = np.arange(UNITS)
unit = Axis(each, {"layer": np.repeat(["a", "b", "c"], UNITS // 3), "index": each % (UNITS // 3)})

class OfUnits:
    parts = staticmethod(lambda table: ("statistics", "histogram", "classes", "top"))
    key_config = staticmethod(lambda table, part: {"version": 1})
    axes = staticmethod(lambda network, samples, table: {
        "unit": unit, "bin": Axis(np.arange(256)), "rank": Axis(np.arange(2)),
        "class": Axis(np.array(samples.classes, dtype=np.str_)), "sample": Axis(samples.ids)})

class OfActivations:
    parts = staticmethod(lambda table: ("activation",))
    key_config = staticmethod(lambda table, part: {"version": 1})
    axes = staticmethod(lambda network, samples, table: {"unit": unit})
    block_size = staticmethod(lambda table, axes: 7)
    encodings = staticmethod(lambda table: {"activation": "float32-bitround10"})

class OfConcepts:
    parts = staticmethod(lambda table: ("counts", "top"))
    key_config = staticmethod(lambda table, part: {"version": 1})
    axes = staticmethod(lambda network, samples, table: {
        "unit": unit, "block": Axis(np.arange(32)), "concept": Axis(np.arange(40)), "category": Axis(np.arange(3)),
        "rank": Axis(np.arange(4)), "sample": Axis(samples.ids)})

sys.modules["neurolens.units.measure"] = OfUnits
sys.modules["neurolens.dissection.cube"] = OfConcepts
sys.modules["neurolens.units.activations"] = OfActivations
study = load_study(sys.argv[1])
store = None
for cube in sys.argv[2:]:
    materials = rows.gather(study, cube)
    if store is None:
        print("begin", flush=True)
        store = rows.open_for_writing(study)
    for result in rows.run_rows(materials, rows.plan(materials, store).todo, store):
        print(result.outcome, cube, *result.row.id, flush=True)
"""


def engine(path: Path, *cubes: str) -> Engine:
    return started(ENGINE, path, *cubes)


def change(home: Path) -> None:
    """Change some checkpoints, and add samples: units and concepts are all measured again, activations get blocks."""
    write_fake_checkpoints(home, CHECKPOINTS // 3, salt="changed ")
    conftest.write_samples(home, np.arange(33))


@pytest.mark.parametrize("cube", CUBES)
def test_run_rows__of_more_than_samples_survive_kills_at_random_moments(
    cube: str, make_study: MakeStudy, stores_equal: Callable[..., None]
) -> None:
    killed, undisturbed = (make_study(name, checkpoints=0, text=STUDY) for name in ("killed", "undisturbed"))
    for path in (killed, undisturbed):
        write_fake_checkpoints(path.parent, CHECKPOINTS)
    rows = CHECKPOINTS * (BLOCKS if cube == "activations" else 1)
    assert len(finish(engine(undisturbed, cube))) == rows
    change(undisturbed.parent)
    finish(engine(undisturbed, cube))

    moments = random.Random(0)
    for number in range(KILLS):
        if number == KILLS // 2:
            finish(engine(killed, cube))
            change(killed.parent)
        kill(lambda: engine(killed, cube), moments.uniform(0, 0.15))
    finish(engine(killed, cube))
    assert finish(engine(killed, cube)) == []
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)


def test_run_rows__of_more_than_samples_are_shared_between_two_runs(
    make_study: MakeStudy, stores_equal: Callable[..., None]
) -> None:
    """Started with different cubes first, so that both write both groups of one store at once."""
    shared, alone = (make_study(name, checkpoints=0, text=STUDY) for name in ("shared", "alone"))
    for path in (shared, alone):
        write_fake_checkpoints(path.parent, CHECKPOINTS)
    finish(engine(alone, *CUBES))
    both = [engine(shared, *CUBES), engine(shared, *reversed(CUBES))]
    computed = Counter(line for process in both for line in finish(process) if line.startswith("computed"))
    assert len(computed) == CHECKPOINTS * (2 + BLOCKS)
    assert set(computed.values()) == {1}
    stores_equal(load_study(shared).store.url, load_study(alone).store.url)
