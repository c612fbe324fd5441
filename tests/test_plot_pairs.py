"""Pictures of pairs: curves, strips of images, cards, maps over images, labels; what is drawn is what was measured."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from pair_picture_cases import CLASSES, WORDS, pair_dataset, pictures_by_id

from neurolens import pairs
from neurolens.errors import SchemaError
from neurolens.plot import (
    ablation_curves,
    heat_panels,
    norm_histogram,
    reconstruction_curve,
    retrieval_gallery,
    segmentation_panels,
    shift_curves,
    unit_card,
)
from neurolens.plot.pairs_curves import IDENTITY
from neurolens.plot.pairs_images import spread
from neurolens.plot.pairs_shift import shift_words
from neurolens.plot.style import COLOURS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def case():
    return pair_dataset()


@pytest.fixture(scope="module")
def ds(case):
    return case[0]


@pytest.fixture(scope="module")
def curve(ds):
    score = pairs.pair_norms(ds, ds, top=20)
    texts = ds["text"].isel(phrase=slice(len(CLASSES)))
    return pairs.ablation_curve(
        ds["scalar"], ds, texts, ds["label"], score=score, shares=(0.1, 1.0, 0.5), baselines=2, bootstrap=50
    )


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_ablation_curves__draw_accuracy_bands_and_random_masks(curve):
    ax = ablation_curves({"pairs": curve, "units": curve.isel(draw=slice(0))}, chance=0.25)
    ordered = curve.sortby("share")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.1, 0.5, 1.0])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ordered["accuracy"])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ordered["random"].mean("draw"))
    band = ax.collections[0].get_paths()[0].vertices
    for bound in ("low", "high"):
        assert set(np.round(ordered[bound].to_numpy(), 9)) <= set(np.round(band[:, 1], 9))
    assert legend(ax) == ["pairs", "pairs, as many at random (2 draws)", "units"]
    assert "chance" in texts_of(ax)
    assert "80 images" in ax.get_ylabel()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10%", "50%", "100%"]


def test_ablation_curves__refuse_what_is_no_curve(curve):
    with pytest.raises(SchemaError, match=r"'pairs' is no ablation_curve.*'low'"):
        ablation_curves({"pairs": curve[["accuracy"]]})
    with pytest.raises(SchemaError, match="there is no curve"):
        ablation_curves({})


def test_reconstruction_curve__says_that_one_direction_a_pair_is_an_identity(ds):
    texts = ds["text"].isel(phrase=slice(len(CLASSES)))
    found = pairs.rank_curve(ds["scalar"], ds, texts, ds["label"], ranks=(1, 2, 4))
    ax = reconstruction_curve(found)
    line, mark = ax.lines[-1], next(one for one in ax.lines if one.get_label() == IDENTITY)
    np.testing.assert_allclose(mark.get_ydata(), [float(found["whole"])])
    drawn = ax.containers[0].lines[0]
    np.testing.assert_allclose(drawn.get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(drawn.get_ydata(), found["accuracy"])
    assert any("an identity" in text for text in legend(ax))
    assert not any("an identity" in text for text in legend(reconstruction_curve(found, identity=False)))
    assert line is mark


def test_rank_curve__ends_at_the_embeddings_and_shares_add_up(ds):
    texts = ds["text"].isel(phrase=slice(len(CLASSES)))
    found = pairs.rank_curve(ds["scalar"], ds, texts, ds["label"], ranks=(1, 3, 4))
    whole = pairs.zero_shot(ds["embedding"], texts, ds["label"])
    assert float(found["whole"]) == float(whole["accuracy"]) == float(found["accuracy"].isel(rank=-1))
    assert float(found["whole_low"]) == float(whole["low"])
    assert float(found["share"].isel(rank=-1)) == pytest.approx(1)
    assert (np.diff(found["share"]) > 0).all()
    assert int(found["count"]) == 80
    longest = pairs.unit_components(ds["scalar"], ds, k=4)["singular_value"] ** 2
    share = float(longest.isel(component=0).sum() / longest.sum())
    assert float(found["share"].isel(rank=0)) == pytest.approx(share, rel=1e-6)
    with pytest.raises(SchemaError, match=r"ranks=\(5,\), and units have 1 to 4"):
        pairs.rank_curve(ds["scalar"], ds, texts, ds["label"], ranks=(5,))


def test_norm_histogram__counts_every_live_pair_and_tells_of_dead_ones(ds):
    norms, dead = pairs.pair_norms(ds, ds, top=20), pairs.dead_pairs(ds, ds)
    ax = norm_histogram(norms, dead)
    assert sum(bar.get_height() for bar in ax.patches) == dead.size - int(dead.sum())
    assert f"{int(dead.sum())} of {dead.size} pairs is dead" in ax.get_xlabel()
    live = norms.mean("rank").to_numpy()[~dead.to_numpy()]
    marks = [line.get_xdata()[0] for line in ax.lines]
    np.testing.assert_allclose(marks, np.percentile(live, (50, 90, 99)))
    assert texts_of(ax) == ["top 50 %", "top 10 %", "top 1 %"]
    assert "2 of 2 pairs are dead" in norm_histogram(xr.zeros_like(norms[:2, :1])).texts[0].get_text()
    with pytest.raises(SchemaError, match="give the same"):
        norm_histogram(norms, dead[:3])


def test_retrieval_gallery__has_a_strip_per_query_with_strengths(ds):
    images = pictures_by_id()
    found = {
        "unit 7": pairs.retrieve(ds["scalar"], ds, unit=7, k=5),
        "unit 7, head 2": pairs.retrieve(ds["scalar"], ds, unit=7, head=2, k=3),
        "a cat": pairs.retrieve(ds["scalar"], ds, text=ds["text"].isel(phrase=0), k=5),
    }
    axes = retrieval_gallery(found, images, columns=4)
    assert [ax.get_xlabel() for ax in axes] == [
        f"{float(value):.3g}" for one in found.values() for value in one["strength"]
    ]
    names = [name for one in found.values() for name in one["sample"].to_numpy()]
    for ax, image in zip(axes, images(names), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), image / 255)
    titles = [part._suptitle.get_text() for part in axes[0].get_figure(root=True).subfigs]
    assert titles == list(found)
    assert len(retrieval_gallery(found["unit 7"], images)) == 5
    with pytest.raises(SchemaError, match="give what retrieve"):
        retrieval_gallery({"x": ds}, images)


def test_unit_card__shows_norms_phrases_and_images_of_the_loudest_heads(ds):
    described = pairs.describe_unit(ds["scalar"], ds, 5, texts=ds["text"], heads=2, phrases=3, images=4)
    axes = unit_card(described, pictures_by_id())
    bars, first, second = axes[0], axes[1 + 5], axes[1 + 10]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], described["norm"])
    loudest = described["row_head"].to_numpy()[1:]
    assert [to_hex(bars.patches[h].get_facecolor()).upper() for h in loudest] == list(COLOURS[:2])
    assert "× 1 dead" in bars.get_xlabel()
    assert bars.get_title(loc="left") == "Unit 5"
    for ax, row in ((first, 1), (second, 2)):
        head, words = texts_of(ax)
        assert head == described["row"].to_numpy()[row]
        best = zip(described["phrase"].to_numpy()[row], described["score"].to_numpy()[row])
        assert words == "\n".join(f"{phrase}  {score:+.2f}" for phrase, score in best)
    assert [ax.get_xlabel() for ax in axes[2:6]] == [f"{float(s):.3g}" for s in described["strength"][0]]


def test_unit_card__takes_codes_in_place_of_phrases_and_ids_in_place_of_images(ds):
    described = pairs.describe_unit(ds["scalar"], ds, 5, heads=1, images=2)
    told = xr.Dataset(
        {"phrase": (("head", "atom"), [["fur", ""]] * 4), "value": (("head", "atom"), [[0.5, np.nan]] * 4)},
        coords={"head": np.arange(4)},
    )
    axes = unit_card(described, told=told)
    assert texts_of(axes[4])[1] == "fur  +0.50"
    assert str(described["sample"].to_numpy()[0, 0]) in texts_of(axes[2])[0]


def test_describe_unit__agrees_with_reductions_over_all_units(ds):
    found = pairs.describe_unit(ds["scalar"], ds, 5, texts=ds["text"], heads=4, phrases=2, images=3, top=20)
    norms = pairs.pair_norms(ds, ds, top=20).mean("rank").sel(unit=5)
    np.testing.assert_allclose(found["norm"], norms, rtol=1e-5, atol=1e-6)
    assert found["dead"].to_numpy().tolist() == [False, True, False, False]
    heads = found["row_head"].to_numpy()[1:]
    assert len(heads) == 3  # a dead one says nothing
    assert (np.diff(norms.to_numpy()[heads]) <= 0).all()
    for row, head in enumerate(heads, start=1):
        alone = pairs.retrieve(ds["scalar"], ds, unit=5, head=int(head), k=3)
        assert found["sample"].to_numpy()[row].tolist() == alone["sample"].to_numpy().tolist()
        scores = pairs.text_scores(ds.isel(unit=[5], head=[int(head)]), ds["text"])[:, 0, 0].to_numpy()
        assert found["phrase"].to_numpy()[row, 0] == [*CLASSES, *WORDS][int(scores.argmax())]
    assert found["phrase"].to_numpy()[0].tolist() == ["", ""]
    with pytest.raises(SchemaError, match="there is no unit 99"):
        pairs.describe_unit(ds["scalar"], ds, 99)


def test_describe_unit__reads_no_other_unit(ds):
    def only_unit_7(values, block_info=None):
        assert block_info is None or block_info[0]["chunk-location"][1] == 7
        return values

    lazy = ds["scalar"].chunk({"unit": 1})
    lazy = lazy.copy(data=lazy.data.map_blocks(only_unit_7, dtype=lazy.dtype, meta=np.zeros((0, 0, 0), lazy.dtype)))
    whole = pairs.describe_unit(ds["scalar"], ds, 7, heads=2)
    xr.testing.assert_allclose(pairs.describe_unit(lazy, ds, 7, heads=2), whole)
    with pytest.raises(AssertionError):
        lazy.compute()


def test_heat_panels__colour_patches_by_what_they_add(case):
    ds, maps = case
    few = ds.isel(sample=[0, 3])
    texts = ds["text"].isel(phrase=[0, 1]).drop_vars(["phrase", "set", "words"]).assign_coords(phrase=["cat", "dog"])
    heat = pairs.heat_maps(maps[[0, 3]], few, ds, texts)
    axes = heat_panels(heat, pictures_by_id()(few["sample"].to_numpy()))
    assert len(axes) == 2 * 3
    assert [ax.get_title(loc="center") for ax in axes[:3]] == ["image", "cat", "dog"]
    logit = float(few["embedding"][0] @ texts[1])
    assert axes[2].get_xlabel().startswith(f"logit {logit:+.3f}")
    strongest = np.abs(heat["heat"].to_numpy()[0]).argmax() % 9
    row, column = np.divmod(strongest, 3)
    assert spread(np.arange(9).reshape(3, 3), (24, 24))[row * 8 + 4, column * 8 + 4] == strongest
    with pytest.raises(SchemaError, match="1 images for the maps of 2"):
        heat_panels(heat, pictures_by_id()(["s001"]))


def test_segmentation_panels__colour_classes_alike_and_tell_scores():
    image = pictures_by_id()(["s001"])[0]
    truth = np.kron([[0, 3], [255, 1]], np.ones((12, 12), int))
    guess = np.where(truth == 255, 3, truth)
    axes = segmentation_panels(image, truth, {"pairs": guess}, classes=["a", "b", "c", "d"], scores={"pairs": 0.25})
    drawn, told = axes[1].images[0], axes[2].images[0]
    assert np.ma.getmaskarray(drawn.get_array()).sum() == (truth == 255).sum()
    colour = lambda shown, at: shown.cmap(shown.norm(shown.get_array()[at]))  # noqa: E731
    for at in ((0, 0), (0, 20), (20, 20)):
        assert colour(drawn, at) == colour(told, at)
    assert len({colour(told, at) for at in ((0, 0), (0, 20), (20, 20))}) == 3
    assert axes[2].get_xlabel() == "mIoU 0.250"
    names = [text.get_text() for text in axes[0].get_figure(root=True).legends[0].get_texts()]
    assert names == ["a", "b", "d", "does not count"]  # only what is there
    with pytest.raises(SchemaError, match="'pairs' has the label 4"):
        segmentation_panels(image, truth, {"pairs": guess + 1}, classes=["a", "b", "c", "d"])
    with pytest.raises(SchemaError, match="bring both to one size"):
        segmentation_panels(image, truth[:12], {}, classes=["a"])


def test_segmentation_panels__read_labels_that_begin_at_one():
    image = pictures_by_id()(["s001"])[0]
    truth = np.kron([[0, 1], [2, 2]], np.ones((12, 12), int))
    axes = segmentation_panels(
        image, truth, {"pairs": np.maximum(truth - 1, 0)}, classes=["a", "b"], reduce_zero_label=True
    )
    shown, told = (ax.images[0].get_array() for ax in axes[1:])
    assert (np.ma.getmaskarray(shown) == (truth == 0)).all()
    assert (shown[truth > 0] == told[truth > 0]).all()


def test_shift_curves__draw_groups_and_tell_correlations(ds):
    share = pairs.phrase_share(ds["scalar"], ds, ds["text"].isel(phrase=1), k=5)
    column = ds["label"] == 1
    grouped = pairs.association_by_group(share, column, ds["year"], permutations=100)
    whole = pairs.association(share, column, permutations=100, bootstrap=100)
    top, low = shift_curves(grouped, whole, phrase="a dog", group="year", column="dogs")
    np.testing.assert_allclose(top.lines[0].get_ydata(), grouped["mean"])
    np.testing.assert_allclose(low.lines[0].get_ydata(), grouped["rate"])
    assert low.get_xlabel() == "year"
    assert low.get_xticklabels()[0].get_text() == "2000"
    assert "a dog" in top.get_title(loc="left")
    said = low.texts[0].get_text().replace("\n", " ")
    assert f"Over 80 images: r = {float(whole['r']):+.2f} (95 %: {float(whole['low']):+.2f} to" in said
    assert f"permutation p = {float(grouped['p']):.3g}" in said
    assert "80 images." in shift_words(grouped)
    with pytest.raises(SchemaError, match="give association_by_group"):
        shift_curves(whole)
