"""Import of tallies and exports of the reference's files, from the command line."""

import csv
import re
from pathlib import Path

import conftest
import numpy as np
import pytest
from concept_store_cases import write_concepts
from mortality_cases import EIGHT, MOVING
from store_cases import key
from tally_cases import TREE, ratio, tree, write
from typer.testing import CliRunner

from neurolens import open_run, schema
from neurolens.cli import app
from neurolens.cli.tallies import order_of
from neurolens.errors import DataError
from neurolens.store import Axis
from neurolens.study import load_study

EVENT_COLUMNS = ["unit", "layer", "label", "epoch_birth", "epoch_death", "score_birth", "score_death"]


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words):
    found = invoke(*words)
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())


def refused(*words):
    found = invoke(*words)
    assert found.exit_code == 2, found.output
    return " ".join(found.stderr.split())


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))


def by_unit(folder, table, stride=1, name="epoch_{}"):
    """A tree of tables with four columns, of units with a score and a label each at every checkpoint."""
    score = np.array(list(table.values()))
    for at in range(score.shape[1]):
        path = folder / name.format(at * stride) / "tally.csv"
        path.parent.mkdir(parents=True)
        lines = [f"{u + 1},object,{word[at].strip() or 'a'},{float(score[u, at])!r}" for u, word in enumerate(table)]
        path.write_text("\n".join(["unit,category,label,score", *lines]) + "\n")
    return folder


def imported(tmp_path, folder, *words):
    done("import", "tallies", folder, "--store", tmp_path / "store.icechunk", *words)
    return tmp_path / "store.icechunk"


@pytest.mark.parametrize("layer", ["layer4", ""])
def test_import_tallies__gives_the_trajectories_exactly(tmp_path, layer):
    folder = tree(tmp_path / "dissection", layer=layer)
    words = [] if layer else ["--layer", "layer4"]
    said = done("import", "tallies", folder, "--store", tmp_path / "store.icechunk", *words)
    assert "3 checkpoints by epoch, 2 units of layer4" in said
    assert "3 rows adopted, 0 there already" in said
    done("export", "trajectories", tmp_path / "store.icechunk", tmp_path / "trajectories.csv")
    expected = [
        [0, 1, "red-c", ratio(100, 50, 20), "color"],
        [0, 2, "cat", ratio(40, 40, 20), "object"],
        [2, 1, "dog", ratio(60, 50, 30), "object"],
        [2, 2, "dog", ratio(60, 40, 10), "object"],
        [10, 1, "dog", ratio(60, 50, 1), "object"],
        [10, 2, "blue-c", ratio(90, 40, 30), "color"],
    ]
    found = rows(tmp_path / "trajectories.csv")
    assert found[0] == ["epoch", "layer", "unit", "label", "score", "category"]
    assert found[1:] == [
        [str(epoch), "layer4", str(unit), label, repr(score), of] for epoch, unit, label, score, of in expected
    ]
    assert open_run(tmp_path / "store.icechunk").attrs["run"] == "dissection"
    said = done("import", "tallies", folder, "--store", tmp_path / "store.icechunk", *words)
    assert "0 rows adopted, 3 there already" in said


@pytest.mark.parametrize("names", [("epoch_0", "epoch_2", "epoch_10"), ("epoch_0_iter_300", "a.b", "c")])
def test_export_tallies__of_an_import_gives_the_same_bytes(tmp_path, names):
    folder = tree(tmp_path / "dissection", names)
    store = imported(tmp_path, folder, "--order", ",".join(names), "--name", "published")
    said = done("export", "tallies", store, tmp_path / "back")
    assert "wrote 3 files" in said
    for name in names:
        path = Path(name) / "layer4" / "tally.csv"
        assert (tmp_path / "back" / path).read_bytes() == (folder / path).read_bytes()
    assert open_run(store).attrs["run"] == "published"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("epoch-0-iter-14k", "epoch-1-iter-28k", "epoch-5-iter"),
            "'epoch-0-iter-14k' in .* is no unambiguous name of a checkpoint: it is none of epoch_<n>",
        ),
        (("epoch_0", "epoch-1-iter-28k", "epoch_2"), "'epoch-1-iter-28k' in .* is no unambiguous name"),
        (("epoch_0", "epoch_1", "epoch-5-iter"), "'epoch-5-iter' in .* is no unambiguous name"),
        (("epoch_0", "epoch_300", "iter_300"), "epoch_0, iter_300 in .* number epochs and steps on one axis"),
        (("epoch_0_iter_300", "epoch_1_iter_300", "epoch_1_iter_600"), "are at the same step, 300"),
        (("epoch_0_iter_300", "epoch_0_iter_600", "epoch_1_iter_450"), "steps seem to be counted anew in every epoch"),
    ],
)
def test_import_tallies__refuses_ambiguous_names_with_the_mend(tmp_path, names, message):
    folder = tree(tmp_path / "dissection", names)
    said = refused("import", "tallies", folder, "--store", tmp_path / "store.icechunk")
    assert re.search(message, said)
    assert "(--order first,second,…)" in said
    assert "--pattern" in said
    assert not (tmp_path / "store.icechunk").exists()
    store = imported(tmp_path, folder, "--order", ",".join(names))  # the mend mends
    assert open_run(store)["tallies"]["epoch"].values.tolist() == [0, 1, 2]


def test_import_tallies__takes_an_order_with_positions_from_a_list_or_a_file(tmp_path):
    names = ("epoch-0-iter-14k", "epoch-1-iter-28k", "epoch-5-iter")
    folder = tree(tmp_path / "dissection", names)
    (tmp_path / "order.txt").write_text("# as trained\n" + "\n".join(f"{n}={s}" for n, s in zip(names, (14, 28, 90))))
    store = imported(tmp_path, folder, "--order", tmp_path / "order.txt", "--dim", "step")
    assert open_run(store)["tallies"]["step"].values.tolist() == [14, 28, 90]
    done("export", "trajectories", store, tmp_path / "trajectories.csv")
    assert [line[:2] for line in rows(tmp_path / "trajectories.csv")][:2] == [["step", "checkpoint"], ["14", names[0]]]
    said = refused("import", "tallies", folder, "--store", store, "--order", ",".join(names))
    assert "holds tallies by step, and these are by epoch" in said


def test_import_tallies__follows_a_pattern(tmp_path):
    folder = tree(tmp_path / "dissection", ("run1-ep0-it300", "run1-ep0-it600", "run1-ep1-it900"))
    store = imported(tmp_path, folder, "--pattern", "run1-ep{epoch}-it{step}")
    held = open_run(store)["tallies"]
    assert held["step"].values.tolist() == [300, 600, 900]
    assert held["epoch"].values.tolist() == [0, 0, 1]


def test_import_tallies__names_what_an_option_can_be(tmp_path):
    folder = tree(tmp_path / "dissection")
    for option, word, known in (
        ("--dim", "epochs", "epoch"),
        ("--mismatched", "drop", "error"),
        ("--differing", "keeps", "keep"),
    ):
        said = refused("import", "tallies", folder, "--store", tmp_path / "store.icechunk", option, word)
        assert option in said
        assert known in said


def test_order_of__takes_what_is_meant():
    assert order_of("a, b,c") == ["a", "b", "c"]
    assert order_of("a=3, b=10") == {"a": 3, "b": 10}
    assert order_of(",".join(f"epoch_{i}" for i in range(500)))[-1] == "epoch_499"
    for text, message in (("a=3,b", "'b' beside positions"), ("a=3k", "'a=3k' beside"), ("a=3,a=4", "twice")):
        with pytest.raises(DataError, match=message):
            order_of(text)


FALLS = [(1, "a", 2, 5, 0.09, 0.03), (2, "b", 3, 5, 0.05, 0.03), (5, "f", 0, 5, 0.06, 0.03), (8, "i", 4, 5, 0.05, 0.01)]
SMOOTHED = [
    (1, "a", 3, 6, 0.07, 0.1 / 3),
    (2, "b", 0, 6, 0.05, 0.03),
    (4, "d", 0, 3, 0.09, 0.07 / 3),
    (5, "g", 0, 6, 0.06, 0.11 / 3),
    (8, "i", 0, 5, 0.06, 0.099999 / 3),
]
SEED_EVENTS = {  # k, smoothing, least alive
    (1, 1, 1): sorted([*FALLS, (4, "d", 0, 1, 0.09, 0.02)]),
    (2, 1, 1): FALLS,
    (3, 1, 1): FALLS,
    (3, 3, 1): SMOOTHED,
    (1, 1, 3): FALLS,
}


@pytest.mark.parametrize("pacing", SEED_EVENTS)
def test_export_events__of_an_import_are_those_of_the_reference(tmp_path, pacing):
    store = imported(tmp_path, by_unit(tmp_path / "tree", EIGHT), "--layer", "layer4")
    k, smoothing, alive = pacing
    options = ["--compat", "seed", "--k", k, "--smoothing-window", smoothing, "--min-alive", alive]
    said = done("export", "events", store, tmp_path / "out", *options)
    expected = SEED_EVENTS[pacing]
    assert f"{len(expected)} deaths; wrote" in said
    header, *found = rows(tmp_path / "out" / "mortality_events.csv")
    assert header == [*EVENT_COLUMNS, "migrated", "functional_dead"]
    assert [(int(r[0]), r[2], int(r[3]), int(r[4])) for r in found] == [line[:4] for line in expected]
    np.testing.assert_allclose([[float(r[5]), float(r[6])] for r in found], [line[4:] for line in expected], rtol=1e-9)
    assert {tuple(r[7:]) for r in found} == {("False", "")}
    summary = dict(rows(tmp_path / "out" / "summary.csv")[1:])
    assert summary["total_events"] == str(len(expected))
    assert summary["functional_dead_events"] == ""
    assert sum(int(n) for _, n in rows(tmp_path / "out" / "concept_death_counts.csv")[1:]) == len(expected)


@pytest.mark.parametrize(
    ("stride", "min_delta", "migrated"), [(1, 0.01, "True"), (1, 0.05, "False"), (300, 0.01, "False")]
)
def test_export_events__of_an_import_migrate_as_in_the_reference(tmp_path, stride, min_delta, migrated):
    folder = by_unit(tmp_path / "tree", MOVING, stride, "iter_{}")
    store = imported(tmp_path, folder, "--layer", "layer4")
    done("export", "events", store, tmp_path / "out", "--compat", "seed", "--min-delta", min_delta)
    header, line = rows(tmp_path / "out" / "mortality_events.csv")
    assert header[3:5] == ["step_birth", "step_death"]
    assert line[:7] == ["1", "layer4", "a", "0", str(4 * stride), "0.09", "0.03"]
    assert line[7:] == [migrated, ""]


def test_export_events__of_an_import_leave_out_what_was_displaced(tmp_path):
    store = imported(tmp_path, tree(tmp_path / "dissection"))
    done("export", "events", store, tmp_path / "out", "--k", "1")
    found = {(r[0], r[2]): r[4] for r in rows(tmp_path / "out" / "mortality_events.csv")[1:]}
    assert found == {("1", "red-c"): "2", ("1", "dog"): "10"}


IOU = np.full((6, 3, 3), 0.01)
IOU[:2, 0, 0] = IOU[:4, 1, 1] = IOU[:, 2, 2] = 0.09


@pytest.mark.parametrize("reading", ["paper", "lite"])
def test_exports__of_the_concepts_cube_and_of_its_tallies_imported_are_the_same_files(tmp_path, reading):
    iou = np.random.default_rng(1).choice([0.0, 0.01, 0.05, 0.09], (6, 4, 3))
    iou[2:, 0], iou[:, 3] = 0.02, 0.0  # a unit that dies, and one without a concept
    store = tmp_path / "measured.icechunk"
    write_concepts(store, iou, layers=("layer3", "layer4"))
    done("export", "tallies", store, tmp_path / "a", "--reading", reading)
    again = imported(tmp_path, tmp_path / "a")
    done("export", "tallies", again, tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.csv"))
    assert len(files) == 12
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    for name, held in (("one", store), ("two", again)):
        done("export", "trajectories", held, tmp_path / name / "trajectories.csv", "--reading", reading)
        done("export", "events", held, tmp_path / name, "--compat", "seed", "--k", 1, "--reading", reading)
    for name in ("trajectories", "mortality_events", "summary", "concept_death_counts"):
        one, two = (tmp_path / place / f"{name}.csv" for place in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert len(rows(tmp_path / "one" / "mortality_events.csv")) > 1


def add_effects(store, falls):
    """Write effects: {epoch: {unit: how far the logit of the one class falls without it}}."""
    store.prepare(
        schema.EFFECTS,
        run="r",
        series="epoch",
        axes={"unit": Axis(np.arange(3)), "class": Axis(np.array(["dog"]))},
        fingerprint="f" * 64,
        settings={"parts": {"ablation": {}}},
    )
    for epoch, fall in falls.items():
        cells = np.full((3, 1), np.nan)
        for unit, value in fall.items():
            cells[unit] = 3.0 - value
        values = {name: np.array([8.0]) for name in ("n_class", "class_correct")} | {"class_logit": np.array([3.0])}
        for name, value in (("ablated_correct", 8.0), ("ablated_lost", 0.0), ("ablated_m2", 1.0)):
            values[name] = np.where(np.isnan(cells), np.nan, value)
        store.write_row(
            schema.EFFECTS,
            (epoch, 0),
            positions={"epoch": epoch},
            values=values | {"ablated_logit": cells},
            keys={"ablation": key(epoch, "ablation")},
            seconds=0.1,
            provenance={},
        )


def test_export_events__tell_functional_deaths_where_effects_were_measured(tmp_path):
    store = write_concepts(tmp_path / "r.icechunk", IOU)
    done("export", "events", store.url, tmp_path / "without", "--k", 1)
    found = rows(tmp_path / "without" / "mortality_events.csv")
    assert [line[-1] for line in found] == ["functional_dead", "", ""]
    add_effects(store, {1: {0: 2.0}, 2: {0: 0.1}})
    said = done("export", "events", store.url, tmp_path / "with", "--k", 1)
    assert "functional_dead is empty for 1 deaths" in said
    found = rows(tmp_path / "with" / "mortality_events.csv")
    assert [line[-1] for line in found] == ["functional_dead", "True", ""]
    assert ["functional_dead_events", "1"] in rows(tmp_path / "with" / "summary.csv")
    said = done("export", "events", store.url, tmp_path / "seed", "--k", 1, "--compat", "seed")
    assert "functional_dead is left empty: conductance was not measured" in said
    assert {line[-1] for line in rows(tmp_path / "seed" / "mortality_events.csv")[1:]} == {""}


def test_import_tallies__tell_which_folders_they_pass_over(tmp_path):
    folder = tree(tmp_path / "dissection")
    (folder / "epoch_0").rename(folder / "start")
    (folder / "notes").mkdir()
    said = done("import", "tallies", folder, "--store", tmp_path / "a.icechunk", "--pattern", "epoch_{epoch}")
    assert "2 checkpoints by epoch" in said
    assert "passed over, with a tally.csv in them: start" in said
    assert "notes" not in said


def test_export_events__follow_concepts_as_the_study_says(tmp_path, make_study):
    effects = '\n[concepts]\nroot = "shapes"\n[effects]\ntau = 0.08\nk = 2\nreading = "lite"\n'
    path = make_study(checkpoints=0, text=conftest.STUDY + effects)
    store = write_concepts(load_study(path).store.url, IOU)
    said = done("export", "events", path, tmp_path / "a")
    assert "by tau = 0.08, k = 2; reading: lite" in said
    done("export", "events", store.url, tmp_path / "b", "--tau", 0.08, "--k", 2, "--reading", "lite")
    for name in ("mortality_events.csv", "summary.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    said = done("export", "events", path, tmp_path / "c", "--tau", 0.05, "--min-alive", 2)
    assert "by tau = 0.05, k = 2, at least 2 checkpoints alive; reading: lite" in said
    assert "by tau = 0.04, k = 3; reading: paper" in done("export", "events", store.url, tmp_path / "d")


def test_export_events__leave_out_the_compatibility_of_the_study_if_asked_to(tmp_path, make_study):
    effects = '\n[concepts]\nroot = "shapes"\n[effects]\ncompat = "seed"\nk = 1\n'
    path = make_study(checkpoints=0, text=conftest.STUDY + effects)
    write_concepts(load_study(path).store.url, IOU)
    assert "by tau = 0.04, k = 1, compat seed; reading: paper" in done("export", "events", path, tmp_path / "a")
    assert "k = 1; reading: paper" in done("export", "events", path, tmp_path / "b", "--compat", "none")
    assert "did you mean 'seed'" in refused("export", "events", path, tmp_path / "c", "--compat", "sed")


def test_exports__choose_the_cube_that_is_named(tmp_path):
    store = write_concepts(tmp_path / "r.icechunk", IOU)
    done("import", "tallies", tree(tmp_path / "dissection"), "--store", store.url)
    done("export", "trajectories", store.url, tmp_path / "a.csv")
    done("export", "trajectories", store.url, tmp_path / "b.csv", "--cube", "tallies")
    assert len(rows(tmp_path / "a.csv")) == 1 + 6 * 3
    assert len(rows(tmp_path / "b.csv")) == 1 + 3 * 2
    assert "did you mean 'tallies'" in refused("export", "events", store.url, tmp_path, "--cube", "tally")


def test_exports__say_what_a_run_lacks(tmp_path, make_store):
    make_store(tmp_path / "store.icechunk")
    said = refused("export", "events", tmp_path / "store.icechunk", tmp_path / "out")
    assert "concepts and tallies are not in this run, which holds samples" in said
    assert "`neurolens import tallies DIR --store STORE`" in said
    write(tmp_path / "tree" / "epoch_0" / "layer4" / "tally.csv", TREE[0])
    store = imported(tmp_path / "other", tmp_path / "tree")
    assert "concepts are not in this run" in refused("export", "tallies", store, tmp_path / "out", "--cube", "concepts")
    assert "did you mean 'lite'" in refused("export", "tallies", store, tmp_path / "out", "--reading", "light")


def test_export_metrics__has_the_columns_of_the_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(conftest.STUDY)
    from neurolens.study import load_study

    folder = Path(load_study("study.toml").checkpoints.folder)
    assert "there are no metrics" in refused("export", "metrics", "study.toml", "out/metrics.csv")
    folder.mkdir(parents=True)
    text = (
        "epoch,train_loss,train_acc,val_loss,val_acc,lr,seconds\r\n0,2.30,0.1,,,0.01,3\r\n1,1.5,0.5,1.6,0.45,0.01,3\r\n"
    )
    (folder / "metrics.csv").write_text(text)
    done("export", "metrics", "study.toml", "out/metrics.csv")
    assert rows("out/metrics.csv") == [
        ["epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr"],
        ["0", "2.30", "0.1", "", "", "0.01"],
        ["1", "1.5", "0.5", "1.6", "0.45", "0.01"],
    ]
    (folder / "metrics.csv").write_text("epoch,loss\n0,1\n")
    assert "lacks train_loss, train_acc" in refused("export", "metrics", "study.toml", "out/metrics.csv")
