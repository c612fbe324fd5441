"""Galleries of units: the masks are those that were counted, and the pictures show what they say."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.contour import QuadContourSet
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer
from units_cases import Net

from neurolens.data.concepts import open_concepts
from neurolens.data.shapes import make_concepts
from neurolens.dissection.choosing import measured_positions, require_top, strongest_detectors, unit_positions
from neurolens.dissection.gallery import unit_masks
from neurolens.dissection.measure import dissect
from neurolens.errors import MissingMeasurementError, NonFiniteError, SchemaError
from neurolens.plot.galleries import OUTLINE, unit_gallery
from neurolens.study import Preprocessing

mpl.use("agg")
LAYERS = ["1", "3"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    concepts = open_concepts(make_concepts(folder / "shapes", n=40, size=32, seed=1))
    return concepts, concepts.packed(cache=folder / "cache")


@pytest.fixture(scope="module")
def colours():
    """Two layers: the redness, greenness and blueness of patches, and a dead unit; then their mean, and less it."""
    net = Net(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 1, stride=2), nn.ReLU()),
        Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)),
    )
    with torch.no_grad():
        for unit, weights in enumerate(([1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0])):
            net.module[0].weight[unit] = torch.tensor(weights, dtype=torch.float32)[:, None, None] / 9
        net.module[0].bias[:] = torch.tensor([0.0, 0, 0, -1])
        net.module[2].weight[:] = torch.tensor([[1.0, 1, 1, 0], [-1, -1, -1, 0]])[..., None, None] / 3
        net.module[2].bias[:] = torch.tensor([0.0, 0.2])
    return net


@pytest.fixture(scope="module")
def found(shapes, colours):
    concepts, masks = shapes
    return dissect(colours, concepts.samples(), masks, layers=LAYERS, quantile=0.05, top=5)


def remade(shapes, colours, found, units, images, **options):
    concepts, _ = shapes
    options = {"shape": concepts.label_size, "layers": LAYERS} | options
    options.setdefault("thresholds", found["threshold"][units] if max(units) < 6 else np.ones(len(units)))
    return unit_masks(colours, concepts.samples(), units=units, images=images, **options)


def test_unit_masks__are_those_that_were_counted(shapes, colours, found):
    _, masks = shapes
    units = [0, 2, 3, 4, 5]
    shown = np.tile(np.arange(len(masks)), (len(units), 1))
    again = remade(shapes, colours, found, units, shown, batch_size=7).masks
    for i, unit in enumerate(units):
        common = np.zeros(masks.n_concepts)
        for image in range(len(masks)):
            common[masks.present(image).concepts] += (masks.planes(image) & again[i, image]).sum((1, 2))
        np.testing.assert_array_equal(common, found["intersection"][:, unit].sum(0))
    assert again[0].any()
    assert not again[2].any()  # the dead unit


def test_unit_masks__has_the_largest_activations_of_the_top_images_in_any_order(shapes, colours, found):
    images = found["top_sample"][[4, 1]][:, ::-1]
    again = remade(shapes, colours, found, [4, 1], images, batch_size=2)
    np.testing.assert_allclose(again.largest, found["top_value"][[4, 1]][:, ::-1], rtol=1e-6)
    assert again.masks.any((-1, -2)).all()


def test_unit_masks__are_empty_where_there_is_no_image(shapes, colours, found):
    again = remade(shapes, colours, found, [0, 1], [[3, -1, np.nan], [-1, np.nan, -1]])
    assert np.isnan(again.largest).tolist() == [[False, True, True], [True, True, True]]
    assert not again.masks[1].any()
    none = remade(shapes, colours, found, [0], [[-1]])
    assert none.masks.shape == (1, 1, *shapes[0].label_size)
    assert np.isnan(none.largest).all()


def test_unit_masks__come_at_the_size_of_the_images_too(shapes, colours, found):
    images = found["top_sample"][[0]]
    small = remade(shapes, colours, found, [0], images).masks
    large = remade(shapes, colours, found, [0], images, shape=shapes[0].image_size).masks
    assert large.shape[-2:] == shapes[0].image_size
    assert abs(large.mean() - small.mean()) < 0.05


def test_unit_masks__of_tokens_lie_on_the_grid_of_patches(shapes):
    concepts, masks = shapes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(
            image_size=32, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=2
        )
    net = Net(vit, Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)))
    found = dissect(net, concepts.samples(), masks, layers="auto", quantile=0.05, top=3)
    again = unit_masks(
        net,
        concepts.samples(),
        layers="auto",
        units=[5],
        thresholds=found["threshold"][[5]],
        images=[np.arange(len(masks))],
        shape=concepts.label_size,
    )
    top = found["top_sample"][5]
    np.testing.assert_allclose(again.largest[0, top], found["top_value"][5], rtol=1e-5)
    common = sum((masks.planes(i) & again.masks[0, i]).sum() for i in range(len(masks)))
    assert abs(int(common) - found["intersection"][:, 5].sum()) <= 4  # rounding of another batch


def test_unit_masks__says_what_is_wrong(shapes, colours, found):
    with pytest.raises(SchemaError, match="there is no unit 6; the layers have units 0 to 5"):
        remade(shapes, colours, found, [6], [[0]], thresholds=[1.0])
    with pytest.raises(SchemaError, match="image 40; units count from 0, and there are 40 images"):
        remade(shapes, colours, found, [0], [[40]])
    with pytest.raises(SchemaError, match="one threshold per unit"):
        remade(shapes, colours, found, [0], [[0]], thresholds=[1.0, 2.0])
    broken = Net(nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU()), colours.preprocessing)
    nn.init.constant_(broken.module[0].weight, torch.nan)
    with pytest.raises(NonFiniteError, match="layer '1'"):
        remade(shapes, broken, found, [0], [[0]], layers=["1"])


def cube(scores, **coords):
    """Scores (epoch, unit, concept) as those of a concepts cube of 100 pixels, a category for each concept."""
    epochs, units, concepts = np.shape(scores)
    scores = np.asarray(scores)[:, None]
    common = 100 * 2 * scores / (1 + scores)
    areas = np.full((epochs, 1, concepts), 100.0)
    names = [f"c{i}" for i in range(concepts)]
    return xr.Dataset(
        {
            "intersection": (("epoch", "block", "unit", "concept"), common),
            "unit_area": (("epoch", "block", "unit", "category"), np.full((epochs, 1, units, concepts), 100.0)),
            "unit_area_lite": (("epoch", "block", "unit", "category"), np.full((epochs, 1, units, concepts), 100.0)),
            "concept_area": (("epoch", "block", "concept"), areas),
        },
        {
            "epoch": np.arange(epochs),
            "unit": np.arange(units),
            "layer": ("unit", ["a"] * 2 + ["b"] * (units - 2)),
            "index": ("unit", [0, 1, *range(units - 2)]),
            "concept": names,
            "label": ("concept", np.arange(1, concepts + 1)),
            "concept_category": ("concept", names),
            "category": names,
            **coords,
        },
    )


def test_strongest_detectors__are_of_a_concept_each_at_the_last_measured_checkpoint():
    first = [[0.9, 0], [0.9, 0], [0.9, 0], [0.9, 0]]
    last = [[0.2, 0.1], [0.3, 0.1], [0, 0], [0.05, 0.08]]
    unmeasured = np.full((4, 2), np.nan)
    ds = cube([first, last, unmeasured], measured=("epoch", [True, True, False]))
    assert measured_positions(ds, "epoch").tolist() == [0, 1]
    chosen = strongest_detectors(ds)
    assert chosen["unit"].values.tolist() == [1, 3]
    assert chosen["label"].values.tolist() == ["c0", "c1"]
    np.testing.assert_allclose(chosen, [0.3, 0.08])
    assert strongest_detectors(ds, count=1)["unit"].values.tolist() == [1]
    with pytest.raises(MissingMeasurementError, match="no checkpoint has been dissected"):
        strongest_detectors(ds.assign_coords(measured=("epoch", [False] * 3)))


def test_unit_positions__takes_numbers_or_layers_and_says_what_there_is():
    ds = cube(np.zeros((1, 5, 2))).assign_coords(unit=[3, 4, 7, 8, 9])
    assert unit_positions(ds, units=[7, 3]) == [2, 0]
    assert unit_positions(ds, layer="b", index=[2, 0]) == [4, 2]
    assert unit_positions(ds, units=[4], layer="a", index=[0]) == [1, 0]
    for options, text in (
        ({"units": [5]}, "there is no unit 5; the cube has units 3 to 9"),
        ({"layer": "c", "index": [0]}, "there is no layer 'c'; known: 'a', 'b'"),
        ({"layer": "b", "index": [3]}, "layer 'b' has units 0 to 2, and no 3"),
        ({"layer": "b"}, "go together"),
        ({"index": [1]}, "go together"),
    ):
        with pytest.raises(SchemaError, match=text):
            unit_positions(ds, **options)
    with pytest.raises(MissingMeasurementError, match="top = 9"):
        require_top(ds)


def gallery(epochs=(1, 5), units=(0, 7), ranks=4):
    """Grey images with a white square, on which masks lie."""
    shape = (len(epochs), len(units), ranks)
    image = np.full((*shape, 16, 16, 3), 100, dtype=np.uint8)
    mask = np.zeros((*shape, 8, 8), dtype=bool)
    mask[..., 2:4, 2:5] = True
    largest = np.ones(shape)
    largest[:, :, -1] = np.nan
    return xr.Dataset(
        {
            "image": (("epoch", "unit", "rank", "y", "x", "channel"), image),
            "mask": (("epoch", "unit", "rank", "row", "column"), mask),
            "largest": (("epoch", "unit", "rank"), largest),
            "score": (("epoch", "unit"), np.full(shape[:2], 0.125)),
            "label": (("epoch", "unit"), np.full(shape[:2], "red", dtype=object)),
        },
        {
            "epoch": list(epochs),
            "unit": list(units),
            "layer": ("unit", ["layer4"] * len(units)),
            "index": ("unit", list(units)),
        },
    )


def test_unit_gallery__shows_a_strip_of_outlined_images_per_unit_and_checkpoint():
    shown = gallery()
    axes = unit_gallery(shown)
    figure = axes[0].get_figure(root=True)
    assert len(axes) == 2 * 2 * 3  # the last rank has no image
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [
        f"layer4 · {unit} (unit {unit}, epoch {epoch}): red, IoU 0.125" for unit in (0, 7) for epoch in (1, 5)
    ]
    drawn = axes[0].images[0].get_array()
    assert drawn[5, 5].tolist() == pytest.approx([100 / 255] * 3)
    assert drawn[0, 0].max() < drawn[5, 5].min()
    (outline,) = [c for c in axes[0].collections if isinstance(c, QuadContourSet)]
    assert mpl.colors.to_hex(outline.get_edgecolor()[0]) == OUTLINE
    low, high = outline.get_paths()[0].get_extents().get_points()
    np.testing.assert_allclose(low, (4, 4), atol=1)
    np.testing.assert_allclose(high, (10, 8), atol=1)
    plt.close(figure)


def test_unit_gallery__wraps_ranks_and_takes_a_selection():
    axes = unit_gallery(gallery(ranks=6).sel(unit=7, epoch=5), columns=2)
    figure = axes[0].get_figure(root=True)
    assert len(axes) == 5
    assert len({round(ax.get_position().y0, 3) for ax in axes}) == 3
    assert [part.get_suptitle() for part in figure.subfigs] == ["layer4 · 7 (unit 7, epoch 5): red, IoU 0.125"]
    plt.close(figure)


def test_unit_gallery__says_where_a_unit_has_no_image_or_no_concept():
    shown = gallery(epochs=(3,), units=(0,))
    shown["largest"][:] = np.nan
    shown["label"][:], shown["score"][:] = "", np.nan
    figure = plt.figure()
    assert unit_gallery(shown, figure=figure) == []
    (part,) = figure.subfigs
    assert part.get_suptitle() == "layer4 · 0 (unit 0, epoch 3): no concept"
    assert any("no image excites it" in text.get_text() for ax in part.axes for text in ax.texts)
    plt.close(figure)


def test_unit_gallery__says_what_is_wrong():
    with pytest.raises(SchemaError, match="'mask' is drawn; give what"):
        unit_gallery(gallery().drop_vars("mask"))
    with pytest.raises(SchemaError, match="there is no unit and no checkpoint to show"):
        unit_gallery(gallery().isel(unit=[]))
