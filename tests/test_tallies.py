"""Tables of the reference's dissection: a hand-made tree gives its trajectories exactly; nothing is guessed."""

import dask.array as da
import numpy as np
import pytest
from mortality_cases import EIGHT
from tally_cases import TREE, both, ratio, tree, write

from neurolens.errors import DataError
from neurolens.mortality import concept_events, read_tallies


@pytest.mark.parametrize("layer", ["layer4", ""])
def test_read_tallies__gives_the_trajectories_exactly(tmp_path, layer):
    found = read_tallies(tree(tmp_path, layer=layer), layers=None if layer else ["layer4"])
    assert found["epoch"].data.tolist() == [0, 2, 10]
    assert found["checkpoint"].data.tolist() == ["epoch_0", "epoch_2", "epoch_10"]
    assert found["label"].data.tolist() == [["red-c", "cat"], ["dog", "dog"], ["dog", "blue-c"]]
    assert found["label_category"].data.tolist() == [["color", "object"], ["object", "object"], ["object", "color"]]
    expected = [
        [ratio(100, 50, 20), ratio(40, 40, 20)],
        [ratio(60, 50, 30), ratio(60, 40, 10)],
        [ratio(60, 50, 1), ratio(90, 40, 30)],
    ]
    np.testing.assert_array_equal(found["score"], expected)
    assert found["layer"].data.tolist() == ["layer4"] * 2
    assert found["index"].data.tolist() == [0, 1]
    assert found["intersect"].sel(category="object").data.tolist() == [[2, 20], [30, 10], [1, 9]]


def test_read_tallies__know_the_best_of_each_category_and_nothing_else(tmp_path):
    iou = read_tallies(tree(tmp_path))["iou"]
    assert isinstance(iou.data, da.Array)
    assert iou["concept"].data.tolist() == ["blue-c", "red-c", "cat", "dog"]
    assert iou["concept_category"].data.tolist() == ["color", "color", "object", "object"]
    nan = np.nan
    expected = [
        [[nan, ratio(100, 50, 20), nan, ratio(60, 50, 2)], [nan, ratio(100, 40, 4), ratio(40, 40, 20), nan]],
        [[nan, ratio(100, 50, 2), nan, ratio(60, 50, 30)], [ratio(90, 40, 4), nan, nan, ratio(60, 40, 10)]],
        [[nan, ratio(100, 50, 1), nan, ratio(60, 50, 1)], [ratio(90, 40, 30), nan, nan, nan]],
    ]
    np.testing.assert_array_equal(iou, expected)


def test_read_tallies__a_displaced_concept_does_not_die(tmp_path):
    found = concept_events(read_tallies(tree(tmp_path)), k=1).set_index(["unit", "concept"])
    assert found.loc[(1, "cat"), "end"] == "displaced"
    assert found.loc[(1, "cat"), "censored"]
    assert found.loc[(1, "dog"), "end"] == "displaced"  # a nameless concept took its place
    assert found.loc[(0, "red-c"), ["end", "death"]].tolist() == ["death", 2]
    assert found.loc[(0, "dog"), ["birth", "death"]].tolist() == [2, 10]
    assert found.loc[(0, "dog"), "category"] == "object"
    assert found.loc[(1, "blue-c"), ["birth", "birth_seen"]].tolist() == [10, True]


def test_read_tallies__order_checkpoints_as_they_are_told(tmp_path):
    tree(tmp_path, ("epoch-0-iter-14k", "epoch-1-iter-28k", "epoch-5-iter"))
    with pytest.raises(DataError, match=r"'epoch-0-iter-14k' in .* is no unambiguous name") as refused:
        read_tallies(tmp_path)
    assert "order=['first', 'second', …]" in str(refused.value)
    names = ["epoch-0-iter-14k", "epoch-1-iter-28k", "epoch-5-iter"]
    found = read_tallies(tmp_path, order=names)
    assert found["epoch"].data.tolist() == [0, 1, 2]
    assert found["checkpoint"].data.tolist() == names
    found = read_tallies(tmp_path, order=dict(zip(names, (14000, 28000, 90000))), dim="step")
    assert found["step"].data.tolist() == [14000, 28000, 90000]
    assert read_tallies(tmp_path, order=names[::-1])["label"].data[0].tolist() == ["dog", "blue-c"]
    with pytest.raises(DataError, match=r"'epoch-1-iter-28', which is not in .*; did you mean 'epoch-1-iter-28k'"):
        read_tallies(tmp_path, order=["epoch-1-iter-28"])


def test_read_tallies__take_numbers_from_names_of_one_kind(tmp_path):
    tree(tmp_path, ("epoch_0_iter_300", "epoch_0_iter_600", "epoch_1_iter_900"))
    found = read_tallies(tmp_path)
    assert found["step"].data.tolist() == [300, 600, 900]
    assert found["epoch"].data.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="are at the same epoch, 0; give the order"):
        read_tallies(tmp_path, dim="epoch")
    write(tmp_path / "epoch_300" / "layer4" / "tally.csv", TREE[0])
    with pytest.raises(DataError, match="number epochs and steps on one axis"):
        read_tallies(tmp_path)
    found = read_tallies(tmp_path, pattern="epoch_{epoch}_iter_{step}")
    assert found["step"].data.tolist() == [300, 600, 900]


def test_read_tallies__follow_a_pattern(tmp_path):
    tree(tmp_path, ("ck-10.run", "ck-2.run", "ck-0.run"))
    (tmp_path / "notes").mkdir()
    found = read_tallies(tmp_path, pattern="ck-{step}.run")
    assert found["step"].data.tolist() == [0, 2, 10]
    assert found["label"].data[0].tolist() == ["dog", "blue-c"]
    for pattern, message in [
        ("ck", "has no field"),
        ("ck-{iter}", "has a field {iter}"),
        ("x-{step}", "no folder in .* is called"),
        ("ck-{step", "close every brace"),
    ]:
        with pytest.raises(DataError, match=message):
            read_tallies(tmp_path, pattern=pattern)
    with pytest.raises(DataError, match="give the one or the other"):
        read_tallies(tmp_path, pattern="ck-{step}.run", order=["ck-2.run"])
    with pytest.raises(DataError, match="tell no epoch, only step"):
        read_tallies(tmp_path, pattern="ck-{step}.run", dim="epoch")


def test_read_tallies__read_layers_in_natural_order(tmp_path):
    for layer in ("layer10", "layer2"):
        tree(tmp_path, layer=layer)
    found = read_tallies(tmp_path)
    assert found["layer"].data.tolist() == ["layer2"] * 2 + ["layer10"] * 2
    assert found["index"].data.tolist() == [0, 1, 0, 1]
    assert read_tallies(tmp_path, layers=["layer10"])["layer"].data.tolist() == ["layer10"] * 2
    with pytest.raises(DataError, match=r"no tally.csv of layer 'layer3'; did you mean 'layer2'"):
        read_tallies(tmp_path, layers=["layer3"])


def test_read_tallies__without_a_folder_need_the_name_of_the_layer(tmp_path):
    tree(tmp_path, layer="")
    with pytest.raises(DataError, match=r"its layer is unknown; name it: layers=\['layer4'\]"):
        read_tallies(tmp_path)
    with pytest.raises(DataError, match="it cannot be of 2 layers"):
        read_tallies(tmp_path, layers=["layer3", "layer4"])


def test_read_tallies__check_the_identity_of_every_cell(tmp_path):
    path = tree(tmp_path) / "epoch_2" / "layer4" / "tally.csv"
    path.write_text(path.read_text().replace("dog,60,50,30,", "dog,60,50,31,"))
    with pytest.raises(DataError, match=r"the object IoU of unit 1 is 0\.375, but intersect .* is 0\.392405; 1 of 4"):
        read_tallies(tmp_path)
    found = read_tallies(tmp_path, mismatched="nan")
    assert np.isnan(found["best_iou"].sel(epoch=2, unit=0, category="object"))
    assert int(found["best_iou"].isnull().sum()) == 1


def test_read_tallies__with_the_four_first_columns_still_give_trajectories(tmp_path):
    for name in ("epoch_0", "epoch_1"):
        path = tmp_path / name / "layer4" / "tally.csv"
        path.parent.mkdir(parents=True)
        path.write_text("unit,category,label,score\n2,object,dog,0.1\n1,color,red-c,0.05\n")
    found = read_tallies(tmp_path)
    assert "iou" not in found
    assert found["label"].data.tolist() == [["red-c", "dog"]] * 2
    assert len(concept_events(found)) == 2


def test_read_tallies__pass_over_the_byte_mark_of_spreadsheets(tmp_path):
    path = tree(tmp_path) / "epoch_0" / "layer4" / "tally.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_tallies(tmp_path)["label"].data[0].tolist() == ["red-c", "cat"]


def test_read_tallies__two_concepts_of_one_name_stay_two(tmp_path):
    same = {1: {"color": ("wood", 100, 50, 20), "object": ("wood", 60, 50, 2)}}
    write(tmp_path / "epoch_0" / "layer4" / "tally.csv", same)
    found = read_tallies(tmp_path)["iou"]
    assert found["concept"].data.tolist() == ["wood (color)", "wood (object)"]
    np.testing.assert_array_equal(found.data.ravel(), [ratio(100, 50, 20), ratio(60, 50, 2)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no tally: it has no line"),
        ("unit,label,score\n1,dog,0.1\n", "it lacks category; needed: unit, category, label, score"),
        ("unit,category,label,score\n1,object,dog\n", "lines of another length"),
        ("unit,category,label,score\n1,object,dog,high\n", "score of unit 1 is 'high'; a number was needed"),
        ("unit,category,label,score\n0,object,dog,0.1\n", "units are whole numbers, one line each"),
        ("unit,category,label,score,object-iou\n1,object,dog,0.1,0.1\n", "lacks the column 'object-label'"),
        (
            "unit,category,label,score,object-label,object-truth,object-activation,object-intersect,object-iou\n"
            "1,objects,dog,0.5,dog,2,2,2,1\n",
            "'objects' is the category of a unit, and of no column; did you mean 'object'",
        ),
    ],
)
def test_read_tallies__say_what_is_wrong_with_a_file(tmp_path, text, message):
    path = tmp_path / "epoch_0" / "layer4" / "tally.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_tallies(tmp_path)


def test_read_tallies__say_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        read_tallies(tmp_path / "dissection")
    with pytest.raises(DataError, match=r"no folder in .* holds a tally\.csv"):
        read_tallies(tmp_path)
    tree(tmp_path)
    write(tmp_path / "epoch_2" / "layer4" / "tally.csv", {1: TREE[1][1]})
    with pytest.raises(DataError, match="epoch_2 has no unit 2 of layer 'layer4'"):
        read_tallies(tmp_path)


def test_read_tallies__refuse_what_was_dissected_with_other_concepts(tmp_path):
    path = tree(tmp_path) / "epoch_2" / "layer4" / "tally.csv"
    write(path, {unit: both(row["color"], ("dog", 61, 50, 30)) for unit, row in TREE[1].items()})
    with pytest.raises(
        DataError, match=r"'dog' is 60 in epoch_0 of layer4 and 61 in epoch_2 of layer4.*--differing keep"
    ):
        read_tallies(tmp_path)
    kept = read_tallies(tmp_path, differing="keep")
    assert kept["truth"].sel(epoch=2, category="object").data.tolist() == [61, 61]
    write(path, {unit: {"object": row["object"]} for unit, row in TREE[1].items()}, categories=("object",))
    with pytest.raises(
        DataError, match="epoch_2 of layer4 has columns for the categories object, and epoch_0 of layer4"
    ):
        read_tallies(tmp_path)
    kept = read_tallies(tmp_path, differing="keep")
    assert np.isnan(kept["best_iou"].sel(epoch=2, category="color")).all()


def test_read_tallies__refuse_steps_that_start_anew_in_every_epoch(tmp_path):
    tree(tmp_path, ("epoch_0_iter_300", "epoch_0_iter_600", "epoch_1_iter_450"))
    with pytest.raises(
        DataError, match="epoch_0_iter_600 is of a later step and an earlier epoch than epoch_1_iter_450"
    ):
        read_tallies(tmp_path)


def test_read_tallies__of_the_eight_units_give_the_reference_its_events(tmp_path):
    score = np.array(list(EIGHT.values()))
    for epoch in range(8):
        path = tmp_path / f"epoch_{epoch}" / "tally.csv"
        path.parent.mkdir()
        labels = [word[epoch].strip() or "a" for word in EIGHT]
        rows = [f"{u + 1},object,{labels[u]},{float(score[u, epoch])!r}" for u in range(8)]
        path.write_text("\n".join(["unit,category,label,score", *rows]) + "\n")
    found = concept_events(read_tallies(tmp_path, layers=["layer4"]), compat="seed", k=3)
    lines = list(zip(found["index"] + 1, found["concept"], found["birth"], found["death"]))
    assert lines == [(1, "a", 2, 5), (2, "b", 3, 5), (5, "f", 0, 5), (8, "i", 4, 5)]
