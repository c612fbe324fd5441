"""Dissecting a network: against activations collected and sorted, and on generated concepts."""

import numpy as np
import pytest
import torch
from dissection_cases import slow_counts
from torch import nn
from units_cases import Net, digits, images

from neurolens.capture import capture
from neurolens.data import shown
from neurolens.data.concepts import open_concepts
from neurolens.data.shapes import make_concepts
from neurolens.dissection import Tally, Thresholds, iou, pack_labels
from neurolens.dissection.measure import dissect, own_thresholds
from neurolens.errors import CaptureError, NonFiniteError, SchemaError
from neurolens.layers import find_layers
from neurolens.study import Preprocessing

LAYERS = ["conv1", "conv2"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    concepts = open_concepts(make_concepts(folder / "shapes", n=40, size=32, seed=1))
    return concepts, concepts.packed(cache=folder / "cache")


def labelled(n=11, size=(8, 8), seed=0):
    rng = np.random.default_rng(seed)
    shown_ = [{0: rng.random(size) < 0.4, 1: rng.random(size) < 0.2, 2: True} for _ in range(n)]
    return shown_, [0, 0, 1]


def collected(net, samples):
    """Every layer's maps of all samples, in evaluation mode."""
    module = net.module.eval()
    batch = next(iter(shown(samples, net, batch_size=len(samples))))
    with torch.no_grad(), capture(module, LAYERS) as seen:
        module(*batch.args)
        return [seen[layer].numpy().copy() for layer in LAYERS]


@pytest.mark.parametrize("memory_mib", [56, 0.025])
def test_dissect__equals_collecting_everything_and_counting_slowly(memory_mib):
    net, samples, (truth, category) = digits(), images(), labelled()
    found = dissect(
        net,
        samples,
        pack_labels(truth, (8, 8), category),
        layers=LAYERS,
        quantile=0.1,
        batch_size=4,
        memory_mib=memory_mib,
    )
    slow = []
    for maps in collected(net, samples):
        flat = maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1).astype(float)
        limits = np.quantile(flat, 0.9, axis=1)
        slow.append((limits, *slow_counts(maps, limits, truth, category, 2, (8, 8), list(range(11)))))
    np.testing.assert_allclose(found["threshold"], np.concatenate([s[0] for s in slow]), atol=1e-5)
    for at, name in enumerate(("intersection", "unit_area", "unit_area_lite"), start=1):
        expected = np.concatenate([s[at] for s in slow], axis=1).sum(axis=0)
        assert expected.any()
        np.testing.assert_allclose(found[name].sum(axis=0), expected, atol=2)  # rounding of another batch size
    assert (found["concept_area"].sum(axis=0) == slow[0][4].sum(axis=0)).all()
    assert found["n_images"].sum() == 11


def test_dissect__with_given_thresholds_counts_the_same_in_one_pass():
    net, samples, (truth, category) = digits(), images(), labelled()
    labels, told = pack_labels(truth, (8, 8), category), []
    one = dissect(net, samples, labels, layers=LAYERS, quantile=0.1)
    again = dissect(
        net, samples, labels, layers=LAYERS, thresholds=one["threshold"], progress=lambda *done: told.append(done)
    )
    assert one.keys() == again.keys()
    for name, values in one.items():
        assert (values == again[name]).all()
    assert told == [(11, 11)]


def test_own_thresholds__are_those_that_dissect_finds_first():
    net, samples, (truth, category) = digits(), images(), labelled()
    told = []
    own = own_thresholds(net, samples, layers=LAYERS, quantile=0.1, progress=lambda *done: told.append(done))
    found = dissect(net, samples, pack_labels(truth, (8, 8), category), layers=LAYERS, quantile=0.1)
    assert (own == found["threshold"]).all()
    assert told == [(11, 11)]
    lite = own_thresholds(net, samples, layers=LAYERS[::-1], compat="lite")
    assert lite.shape == own.shape
    assert (lite != own).any()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_dissect__has_the_images_that_excite_each_unit_most(batch_size):
    net, samples, (truth, category) = digits(), images(), labelled()
    labels = pack_labels(truth, (8, 8), category)
    found = dissect(net, samples, labels, layers=LAYERS, top=13, batch_size=batch_size)
    largest = np.concatenate([maps.max(axis=(2, 3)) for maps in collected(net, samples)], axis=1)
    order = np.argsort(-largest, axis=0, kind="stable").T
    np.testing.assert_allclose(found["top_value"][:, :11], np.take_along_axis(largest.T, order, axis=1), atol=1e-5)
    assert np.isnan(found["top_value"][:, 11:]).all()
    assert (found["top_sample"][:, 11:] == -1).all()
    assert (np.sort(found["top_sample"][:, :11], axis=1) == np.arange(11)).all()
    again = np.take_along_axis(largest.T, found["top_sample"][:, :11].astype(int), axis=1)
    np.testing.assert_allclose(again, found["top_value"][:, :11], atol=1e-5)
    assert "top_value" not in dissect(net, samples, labels, layers=LAYERS)


def test_dissect__has_areas_of_generated_concepts_and_nothing_of_a_dead_unit(shapes):
    concepts, masks = shapes
    net = Net(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)))
    with torch.no_grad():  # the second is dead
        net.module[0].weight[:] = torch.tensor([[1.0, -1.0, -1.0], [0, 0, 0]])[:, :, None, None]
        net.module[0].bias[:] = torch.tensor([0.0, -1.0])
    found = dissect(net, concepts.samples(), masks, layers=["1"], quantile=0.02)
    assert found["threshold"][1] == 0
    assert not found["intersection"][:, 1].any()
    assert not found["unit_area"][:, 1].any()
    assert found["unit_area"][:, 0].any()
    area = masks.concept_area()
    assert (found["concept_area"].sum(axis=0) == area).all()
    assert (found["intersection"].sum(axis=0) <= area).all()


def test_tally__reads_bitplanes_of_generated_concepts_exactly(shapes):
    concepts, masks = shapes
    height, width = masks.label_size
    wanted = int(np.argmax(masks.concept_area()))
    maps = np.zeros((len(masks), 1, height, width), np.float32)
    for image in range(len(masks)):
        present = masks.present(image).concepts.tolist()
        if wanted in present:
            maps[image, 0] = masks.planes(image)[present.index(wanted)]
    with Thresholds(1, maps.size, quantile=0.5) as thresholds:
        thresholds.update(maps)
        assert thresholds.result()[0] in (0, 1)
    tally = Tally(masks, 1)
    tally.add(maps, [0.5], np.arange(len(masks)))
    area = masks.concept_area()
    assert (tally.concept_area.sum(axis=0) == area).all()
    assert tally.intersection[:, 0, wanted].sum() == area[wanted]
    ds = _cube(tally, concepts)
    np.testing.assert_allclose(iou(ds).values[0, 0, wanted], 1, rtol=0, atol=1e-12)


def _cube(tally, concepts):
    from dissection_cases import cube

    names = [str(c) for c in range(len(concepts.category))]
    categories = [str(c) for c in range(tally.unit_area.shape[2])]
    return cube(tally, concepts=names, category=concepts.category, categories=categories)


def test_dissect__says_what_is_wrong():
    net, samples, (truth, category) = digits(), images(), labelled()
    labels = pack_labels(truth, (8, 8), category)
    with pytest.raises(SchemaError, match="labels of 10 images and 11 samples"):
        dissect(net, samples, pack_labels(truth[:10], (8, 8), category), layers=LAYERS)
    with pytest.raises(SchemaError, match="one for each of"):
        dissect(net, samples, labels, layers=LAYERS, thresholds=[1.0])
    with pytest.raises(SchemaError, match="top=-1"):
        dissect(net, samples, labels, layers=LAYERS, top=-1)
    flat = [layer.name for layer in find_layers(net.module, ["**"], torch.zeros(2, 1, 8, 8)) if not layer.shape]
    with pytest.raises(CaptureError, match="name layers of convolutions"):
        dissect(net, samples, labels, layers=[*LAYERS, flat[-1]])
    with torch.no_grad():
        net.module.conv1.weight[:] = np.nan
    with pytest.raises(NonFiniteError, match=r"layer 'conv1': .*NaN"):
        dissect(net, samples, labels, layers=LAYERS)
