"""Kill −9 while labels are decoded, thresholds taken and checkpoints dissected: what is left ends as it should."""

import random
from collections.abc import Callable
from pathlib import Path

from concept_study import STUDY, write_study
from kill_cases import Engine, finish, kill, started, timed

from neurolens.study import load_study

KILLS = 3
TEXT = STUDY.replace("top = 3", "top = 3\nrotations = 1\nthreshold_from = 1") + "[effects]\nk = 1\ntau = 0.08\n"
ENGINE = """
import sys
from neurolens import rows
import neurolens.dissection.cube, neurolens.effects.measure, neurolens.models
from neurolens.study import load_study

study = load_study(sys.argv[1])
print("begin", flush=True)
for cube in ("concepts", "effects"):
    materials = rows.gather(study, cube)
    store = rows.open_for_writing(study)
    for result in rows.run_rows(materials, rows.plan(materials, store).todo, store):
        print(cube, result.row.position, result.outcome, result.why, flush=True)
"""


def engine(path: Path) -> Engine:
    environment = {"XDG_CACHE_HOME": str(path.parent / "cache")}
    return started(ENGINE, path, environment=environment)


def test_run__of_concepts_and_effects_survives_kills_at_random_moments(
    tmp_path: Path, stores_equal: Callable[..., None]
) -> None:
    killed, undisturbed = (write_study(tmp_path / name, checkpoints=4, text=TEXT) for name in ("killed", "undisturbed"))
    done, lasted = timed(engine(undisturbed))
    assert {line.split()[0] for line in done} == {"concepts", "effects"}
    moments = random.Random(1)
    for _ in range(KILLS):
        kill(lambda: engine(killed), moments.uniform(0, lasted))
    finish(engine(killed))
    assert finish(engine(killed)) == []
    stores_equal(load_study(killed).store.url, load_study(undisturbed).store.url)
