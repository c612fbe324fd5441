"""Studies of several seeds: what each is made of, and that everything that takes a study takes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurolens.errors import MissingCheckpointError, StudyError
from neurolens.study import Study, load_study
from neurolens.study.seeds import each_seed, one_run, require_checkpoints

MakeStudy = Callable[..., Path]


def study(**changes: object) -> Study:
    return Study.model_validate({"name": "s", "seeds": [0, 7], "train": {"seed": 3}, **changes})


def test_each_seed__has_a_name_checkpoints_and_a_store_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "shapes"\nseeds = [2, 0]\n[train]\nlr = 0.5\n[samples]\ncurvature = true\n')
    whole = load_study(path)
    two, zero = each_seed(whole)
    assert (two.name, zero.name) == ("shapes-seed2", "shapes-seed0")
    assert two.train is not None
    assert (two.train.seed, two.train.lr) == (2, 0.5)
    assert two.checkpoints.folder == tmp_path / "checkpoints" / "seed-2"
    assert zero.store.url == str(tmp_path / "store-seed-0.icechunk")
    assert two.seeds == ()
    assert (two.samples, two.data, two.model) == (whole.samples, whole.data, whole.model)
    assert each_seed(two) == (two,)


def test_each_seed__of_a_study_without_seeds_is_itself() -> None:
    alone = study(seeds=[])
    assert each_seed(alone) == (alone,)
    assert one_run(alone) is alone


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/runs/a.icechunk", "s3://bucket/runs/a-seed-7.icechunk"),
        ("s3://bucket/runs.old/a", "s3://bucket/runs.old/a-seed-7"),
        ("s3://bucket/runs/", "s3://bucket/runs-seed-7"),
        ("s3://bucket.eu", "s3://bucket.eu/seed-7"),
        ("/data/runs.old/store", "/data/runs.old/store-seed-7"),
        ("/data/store.icechunk/", "/data/store-seed-7.icechunk"),
    ],
)
def test_each_seed__puts_the_seed_before_the_suffix_of_the_store(url: str, expected: str) -> None:
    assert each_seed(study(store={"url": url}))[1].store.url == expected


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_each_seed__shares_no_place(seeds: list[int]) -> None:
    found = each_seed(study(seeds=seeds))
    assert [one.train.seed for one in found if one.train] == seeds
    for places in ({one.store.url for one in found}, {one.checkpoints.folder for one in found}):
        assert len(places) == len(seeds)


def test_one_run__names_the_seed_that_is_missing() -> None:
    assert one_run(study(), 7) == each_seed(study())[1]
    with pytest.raises(StudyError, match=r"seeds 0, 7, .*name it with --seed 0, or its store: store-seed-0"):
        one_run(study())
    with pytest.raises(StudyError, match="no seed 3; name one of those"):
        one_run(study(), 3)
    with pytest.raises(StudyError, match=r"lists no seeds, .* add seeds = \[3\]"):
        one_run(study(seeds=[]), 3)


def test_require_checkpoints__names_the_folders_that_a_study_without_train_needs(tmp_path: Path) -> None:
    reading = study(train=None, checkpoints={"folder": str(tmp_path)})
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(MissingCheckpointError, match=r"seeds 0, 7 and has no \[train\] table.*seed-7; put") as raised:
        require_checkpoints(reading)
    assert "seed-0" not in str(raised.value).partition("there is no")[2].partition(";")[0]
    (tmp_path / "seed-7").mkdir()
    require_checkpoints(reading)
    require_checkpoints(study())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 2, 1]}, "seeds lists 1 more than once"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"train": None, "checkpoints": {"files": [{"path": "a.pt", "epoch": 0}]}}, "checkpoints.files names"),
        ({"train": None, "checkpoints": {"revisions": "step{step}", "pattern": "{step}"}}, "checkpoints.revisions"),
    ],
)
def test_seeds__that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)
