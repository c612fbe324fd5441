"""Kill −9 while clusters are found and attributions measured: what is left ends as it should."""

import random
from collections.abc import Callable
from pathlib import Path

from attribution_study import TEXT
from kill_cases import Engine, finish, kill, started, timed

from neurolens.study import load_study

KILLS = 3
ENGINE = """
import sys
from neurolens import rows
import neurolens.attribution.measure, neurolens.clusters.measure, neurolens.models
from neurolens.study import load_study

study = load_study(sys.argv[1], overrides=sys.argv[2:])
print("begin", flush=True)
for cube in ("clusters", "attributions"):
    materials = rows.gather(study, cube)
    store = rows.open_for_writing(study)
    for result in rows.run_rows(materials, rows.plan(materials, store).todo, store):
        print(cube, result.row.position, result.row.block, result.outcome, result.why, flush=True)
"""


def engine(path: Path, *overrides: str) -> Engine:
    environment = {"XDG_CACHE_HOME": str(path.parent / "cache")}
    return started(ENGINE, path, *overrides, environment=environment)


def test_run__of_attributions_survives_kills_at_random_moments(
    make_study: Callable[..., Path], stores_equal: Callable[..., None]
) -> None:
    killed, undisturbed = (make_study(name, checkpoints=2, text=TEXT) for name in ("killed", "undisturbed"))
    done, lasted = timed(engine(undisturbed))
    assert len(done) == 2 + 2 * 3
    moments = random.Random(2)
    for _ in range(KILLS):
        kill(lambda: engine(killed), moments.uniform(0, lasted))
    finish(engine(killed))
    assert finish(engine(killed)) == []
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)


def test_run__with_another_k_survives_kills_and_measures_each_row_once(
    make_study: Callable[..., Path], stores_equal: Callable[..., None]
) -> None:
    more = "clusters.k=[2,3,4]"
    killed, undisturbed = (make_study(name, checkpoints=2, text=TEXT) for name in ("killed", "undisturbed"))
    for path in (killed, undisturbed):
        finish(engine(path))
    done, lasted = timed(engine(undisturbed, more))
    assert len(done) == 2 + 2 * 3
    moments = random.Random(3)
    for _ in range(KILLS):
        kill(lambda: engine(killed, more), moments.uniform(0, lasted))
    finish(engine(killed, more))
    assert finish(engine(killed, more)) == []
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)
