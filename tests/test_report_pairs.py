"""What the report and ``neurolens plot`` say of pairs: numbers of one checkpoint, a section, pictures, caps."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from pair_picture_cases import CLASSES, pair_dataset
from pairs_cube_cases import HEADS, IMAGES, RANKS, UNITS, pairs_run, write_pairs_store

from neurolens import open_run, pairs, plot
from neurolens.errors import DataError, MissingMeasurementError
from neurolens.flows.figures import _of_pairs, _of_pools
from neurolens.pairs import at, codes_at
from neurolens.plot import pairs_numbers
from neurolens.plot.pairs_numbers import class_texts, strongest_images
from neurolens.plot.run_pictures import RunPictures
from neurolens.report import write_report
from neurolens.report.figures import all_figures
from neurolens.report.pair_figures import pair_figures, pair_section, strongest_table


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_numbers, "DRAWS", 1)
        patch.setattr(pairs_numbers, "RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def store():
    return pairs_run()


@pytest.fixture(scope="module")
def cubes(store):
    run = open_run(store)
    return {name: run[name].to_dataset() for name in run.children}


@pytest.fixture(scope="module")
def given(cubes):
    return plot.pair_numbers(cubes)


def gray(ids):
    return [np.random.default_rng(int(name, 16)).integers(0, 255, (8, 8)).astype(np.uint8) for name in ids]


def facts(section):
    return {fact.name: fact.text for fact in section.facts}


def test_pair_numbers__are_those_of_the_reductions(given, store):
    ds = at(store)
    assert given.where == "epoch 10"
    assert given.images == given.used == IMAGES
    assert given.top == RANKS
    assert given.residual == float(ds["completeness"].max())
    np.testing.assert_allclose(given.norms, pairs.pair_norms(ds, ds, top=RANKS).mean("rank"), rtol=1e-5)
    np.testing.assert_array_equal(given.signs, pairs.majority(ds, ds, top=RANKS))
    best = np.unravel_index(int(np.argmax(given.norms.to_numpy())), (UNITS, HEADS))
    one = given.strongest.isel(pair=0)
    assert (int(one["unit"]), int(one["head"])) == best
    words = ds["text"].isel(phrase=ds["set"].to_numpy() == "words")  # the larger set
    scores = pairs.text_scores(ds.isel(unit=[best[0]], head=[best[1]]), words)[:, 0, 0].to_numpy()
    assert one["phrase"].to_numpy()[0] == words["words"].to_numpy()[scores.argmax()]
    code = codes_at(store).sel(unit=best[0], head=best[1])
    told = int(code["index"][int(np.nanargmax(np.abs(code["value"].to_numpy())))])
    assert one["code"].to_numpy()[0] == str(codes_at(store)["phrase"].to_numpy()[told])
    texts = class_texts(ds)
    expected = pairs.rank_curve(ds["scalar"], ds, texts, ds["label"], ranks=(1, 2))
    xr.testing.assert_allclose(given.ranks, expected)
    assert set(given.curves) == {"pairs", "units"}
    assert given.sinks["sink"].dims == ("head", "token")
    assert given.notes == ()


def test_pair_numbers__of_codes_with_fewer_phrases_than_are_near(cubes, given):
    found = plot.pair_numbers(cubes | {"codes": cubes["codes"].isel(atom=[0])}, accuracy=False)
    assert found.strongest["phrase"].shape[1] > found.strongest["code"].shape[1] == 1
    xr.testing.assert_equal(found.strongest["phrase"], given.strongest["phrase"])
    assert all(line[5].count(", ") == 0 for line in strongest_table(found).lines)


def test_pair_numbers__of_an_earlier_checkpoint_and_of_the_tree(store):
    found = plot.pair_numbers(open_run(store), epoch=5, accuracy=False)
    assert found.where == "epoch 5"
    assert found.curves == {}
    assert found.notes == ()
    ds = at(store, epoch=5)
    np.testing.assert_allclose(found.norms, pairs.pair_norms(ds, ds, top=RANKS).mean("rank"), rtol=1e-5)


def test_pair_numbers__without_scalars_are_of_the_totals(cubes, given):
    found = plot.pair_numbers({"pools": cubes["pools"]})
    np.testing.assert_allclose(found.norms, given.norms)
    assert found.images == IMAGES
    assert found.residual == pytest.approx(given.residual)
    assert found.curves == {}
    assert found.sinks is None
    assert "phrase" not in found.strongest
    names = [picture.name for picture in plot.pair_pictures(found, images=gray)[0]]
    assert names == ["pairs_norms", "pairs_following", "pairs_gallery"]


def test_pair_numbers__without_totals_are_of_the_scalars(tmp_path, given):
    write_pairs_store(tmp_path / "store", with_totals=False, cubes=("pools", "pairs"), epochs=(10,))
    found = plot.pair_numbers(open_run(tmp_path / "store"))
    ds = at(tmp_path / "store")
    np.testing.assert_allclose(found.norms, pairs.pair_norms(ds["scalar"], ds, top=20).mean("rank"))
    firsts = {name.split(":")[0]: strip["sample"].to_numpy()[0] for name, strip in given.retrieved.items()}
    same = {name: strip["sample"].to_numpy()[0] for name, strip in found.retrieved.items() if name in firsts}
    assert same
    assert same == {name: firsts[name] for name in same}
    assert "no set of [texts]" in found.notes[0]


def test_pair_numbers__are_of_the_last_checkpoint_that_all_cubes_have(tmp_path):
    write_pairs_store(tmp_path / "store", failed={("pairs", 10, 1)}, cubes=("pools", "pairs"), epochs=(5, 10))
    run = open_run(tmp_path / "store")
    assert plot.pair_numbers(run, accuracy=False).where == "epoch 5"
    with pytest.raises(MissingMeasurementError, match="pairs was not measured at epoch 10"):
        plot.pair_numbers(run, epoch=10)
    lost = {"pools": run["pools"].to_dataset(), "pairs": run["pairs"].to_dataset().isel(epoch=slice(0))}
    found = plot.pair_numbers(lost, accuracy=False)
    assert found.where == "epoch 10"
    assert found.notes[0].startswith("Pairs are told by their totals only: ")


def test_pair_numbers__keep_to_their_caps(cubes, monkeypatch):
    pairs_of_pool = UNITS * HEADS
    monkeypatch.setattr(pairs_numbers, "HELD", 7 * pairs_of_pool)
    monkeypatch.setattr(pairs_numbers, "WEIGHED", 1)
    found = plot.pair_numbers(cubes)
    assert found.used == 7
    assert found.ranks is None
    picture = next(p for p in plot.pair_pictures(found)[0] if p.name == "pairs_ablation")
    assert f"7 images of {IMAGES}, evenly spaced," in picture.caption
    monkeypatch.setattr(pairs_numbers, "READ", IMAGES * pairs_of_pool - 1)
    found = plot.pair_numbers(cubes)
    assert found.curves == {}
    assert "would read more than" in found.notes[0]


def test_pair_numbers__say_what_is_needed_where_there_are_no_pools(cubes):
    with pytest.raises(MissingMeasurementError, match=r"holds texts, and not the pools.*--only pools"):
        plot.pair_numbers({"texts": cubes["texts"]})


def test_class_texts__are_in_the_order_of_classes_or_none():
    ds, _ = pair_dataset(images=8)
    found = class_texts(ds.isel(phrase=[9, 3, 1, 0, 2]))
    assert found["class"].to_numpy().tolist() == list(CLASSES)
    np.testing.assert_array_equal(found, ds["text"].to_numpy()[:4])
    assert class_texts(ds.isel(phrase=[0, 1])) is None
    assert class_texts(ds.drop_vars("text")) is None


def test_strongest_images__of_totals_are_those_of_the_scalars():
    ds, _ = pair_dataset(images=40)
    alone = ds.drop_vars(["top", "top_sample"])
    for unit, head in ((0, 1), (7, 2)):
        one, two = strongest_images(ds, unit, head, k=6), strongest_images(alone, unit, head, k=6)
        assert one["sample"].to_numpy().tolist() == two["sample"].to_numpy().tolist()
        np.testing.assert_allclose(one["strength"], two["strength"], rtol=1e-5)
    assert strongest_images(alone.drop_vars("scalar"), 0, 0).sizes["rank"] == 0
    assert strongest_images(ds.drop_vars("scalar"), 7, 2, k=6).identical(strongest_images(ds, 7, 2, k=6))


def test_pair_pictures__have_what_there_is(given):
    drawn, notes = plot.pair_pictures(given, images=gray, cards=1)
    names = [picture.name for picture in drawn]
    unit = given.strongest["unit"].to_numpy()[0]
    assert names == [
        "pairs_norms",
        "pairs_ablation",
        "pairs_reconstruction",
        "pairs_following",
        "pairs_gallery",
        f"pairs_card_{unit}",
    ]
    assert notes == []
    captions = {picture.name: picture.caption for picture in drawn}
    assert "is an identity, and no finding" in captions["pairs_reconstruction"]
    assert f"{float(given.curves['pairs']['accuracy'].sel(share=1.0)):.1%} with all" in captions["pairs_ablation"]


def test_pair_pictures__follow_the_loudest_pairs_through_training(given, store):
    drawn = {picture.name: picture for picture in plot.pair_pictures(given)[0]}
    turns, *worded = drawn["pairs_following"].figure.axes
    change = pairs.direction_change(store)
    followed = [(int(p["unit"]), int(p["head"])) for p in (given.strongest.isel(pair=i) for i in range(12))]
    unit, head = followed[0]
    line = next(line for line in turns.lines if line.get_label() == f"unit {unit}, head {head}")
    np.testing.assert_allclose(line.get_ydata(), change["cosine"].sel(unit=unit, head=head))
    np.testing.assert_allclose(turns.lines[0].get_ydata(), change["cosine"].median(("unit", "head")))
    history = pairs.text_history(store, unit=unit, head=head, words="words").isel(unit=0, head=0)
    last = history["score"].isel(epoch=-1)
    nearest = last.sortby(last, ascending=False)["phrase"].to_numpy()[:5]
    assert [line.get_label() for line in worded[0].lines][:5] == nearest.tolist()
    np.testing.assert_allclose(worded[0].lines[0].get_ydata(), history["score"].sel(phrase=nearest[0]), rtol=1e-6)
    assert worded[0].get_title(loc="left") == f"Unit {unit}, head {head}"


def test_pair_pictures__go_without_images_that_are_gone(given):
    def gone(ids):
        raise DataError("3 samples are not in the study's data")

    drawn, notes = plot.pair_pictures(given, images=gone)
    assert not [picture.name for picture in drawn if "gallery" in picture.name or "card" in picture.name]
    assert notes == ["There are no images of pairs: 3 samples are not in the study's data"]


def test_pair_section__lists_completeness_dead_pairs_signs_and_pairs(given):
    section = pair_section(RunPictures(pairs=given))
    said = facts(section)
    assert f"of {IMAGES} images at epoch 10 to within {given.residual:.1e}" in said["completeness"]
    assert said["dead pairs"].startswith(f"0 of {UNITS * HEADS} (0.00%)")
    turned, tied = (int((given.signs == value).sum()) for value in (-1, 0))
    assert (
        f"{turned} of {UNITS * HEADS} live pairs would be turned round, and {tied} are tied"
        in said["signs of directions"]
    )
    assert "is an identity" in said["one direction a pair"]
    assert "attention sinks" in said
    table = section.tables[0]
    assert table.header == ("unit", "head", "norm", "sign", "nearest phrases", "code")
    assert len(table.lines) == 12
    one = given.strongest.isel(pair=0)
    assert table.lines[0][:2] == (str(int(one["unit"])), str(int(one["head"])))
    assert table.lines[0][4].startswith(f"{one['phrase'].to_numpy()[0]} {float(one['score'][0]):+.2f}, ")
    assert pair_section(RunPictures()) is None


def test_strongest_table__tells_signs(given):
    told = {(line[0], line[1]): line[3] for line in strongest_table(given).lines}
    words = {1: "+u", -1: "−u", 0: "tied"}
    for unit in range(UNITS):
        for head in range(HEADS):
            assert told[str(unit), str(head)] == words[int(given.signs[unit, head])]


def test_pair_figures__say_what_was_found(given):
    found = {figure.name: figure for figure in pair_figures(given)}
    assert found["pairs"].value == str(UNITS * HEADS)
    assert found["residual of completeness"].value == f"{given.residual:.1e}"
    assert found["dead pairs"].value == "0"
    share = given.curves["pairs"]["accuracy"].sel(share=0.1)
    assert found["with a tenth of the pairs"].value == f"{float(share):.1%}"


def test_all_figures__count_checkpoints_where_there_are_only_pairs(given, cubes):
    found = {figure.name: figure for figure in all_figures(cubes, RunPictures(pairs=given))}
    assert (found["checkpoints"].value, found["checkpoints"].meaning) == ("3", "epoch 0 to 10")
    assert "dead pairs" in found


def test_flows__tell_residuals_and_dead_pairs_of_the_last_checkpoints(cubes, store):
    pools = _of_pools(cubes["pools"], "epoch")
    assert pools[1] == f"{UNITS} units through {HEADS} heads"
    worst = float(at(store, epoch=5)["worst_residual"])
    assert f"| 5 | {IMAGES} | {worst:.1e} | 0 |" in pools
    assert _of_pools(cubes["pools"].drop_vars("std"), "epoch") == []
    assert f"| 5 | {worst:.1e} |" in _of_pairs(cubes["pairs"], "epoch")


def test_report__has_a_section_of_units_and_heads(store, tmp_path, monkeypatch):
    monkeypatch.setattr("neurolens.report.page.DPI", 40)
    page = write_report(store, tmp_path / "report.html").read_text()
    assert "<h2>Units and heads</h2>" in page
    assert "The loudest pairs" in page
    assert page.index("residual of completeness") < page.index('<section id="pairs">')
