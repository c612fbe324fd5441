"""Layers turned at random: the matrices, and rotated units against maps that are mixed, sorted and counted slowly."""

import numpy as np
import pytest
import torch
from dissection_cases import slow_counts
from torch import nn
from units_cases import Net, digits, images

from neurolens.capture import capture
from neurolens.data import shown
from neurolens.dissection import pack_labels
from neurolens.dissection.measure import dissect, own_thresholds
from neurolens.dissection.rotations import random_rotation, rotated, whole_tally
from neurolens.errors import NonFiniteError, SchemaError

LAYERS = ["conv1", "conv2"]
READINGS = {"rotated_score": 1, "rotated_score_lite": 2}


def labelled(n=11, size=(8, 8), seed=0):
    rng = np.random.default_rng(seed)
    shown_ = [{0: rng.random(size) < 0.4, 1: rng.random(size) < 0.2, 2: True} for _ in range(n)]
    return shown_, [0, 0, 1], pack_labels(shown_, size, [0, 0, 1])


def slow_scores(maps, quantile, truth, category, area):
    """The best IoU of each unit: thresholds by sorting, masks by Pillow, equation 1 of the paper."""
    flat = maps.transpose(1, 0, 2, 3).reshape(maps.shape[1], -1).astype(float)
    limits = np.quantile(flat, 1 - quantile, axis=1)
    counted = slow_counts(maps, limits, truth, category, 2, (8, 8), [0] * len(maps))
    common, mask, whole = counted[0][0], counted[area][0][:, category], counted[3][0]
    return (common / (mask + whole - common)).max(axis=1)


def test_random_rotation__is_orthogonal_and_follows_from_seed_rotation_and_layer():
    one = random_rotation(9, layer="layer4", rotation=2, seed=5)
    np.testing.assert_allclose(one @ one.T, np.eye(9), atol=1e-14)
    assert (one == random_rotation(9, layer="layer4", rotation=2, seed=5)).all()
    for other in ({"layer": "layer3"}, {"rotation": 1}, {"seed": -5}):
        drawn = random_rotation(9, **({"layer": "layer4", "rotation": 2, "seed": 5} | other))
        assert np.abs(drawn - one).max() > 0.1


def test_random_rotation__is_uniform_over_orthogonal_matrices():
    drawn = np.array([random_rotation(4, layer="a", rotation=r, seed=0) for r in range(2000)])
    assert np.abs(drawn.mean(axis=0)).max() < 4 * 0.5 / 2000**0.5  # entries: mean 0, variance 1/U
    np.testing.assert_allclose((drawn**2).mean(axis=0), 0.25, atol=0.03)
    trace = np.trace(drawn, axis1=1, axis2=2)
    assert abs(trace.mean()) < 0.1  # without the signs, far below 0
    assert abs(trace.var() - 1) < 0.15
    assert abs((np.linalg.det(drawn) > 0).mean() - 0.5) < 0.05


@pytest.mark.parametrize("last", [False, True])
def test_rotated__mixes_units_at_each_place(last):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 4, 5, 6) if last else (3, 6, 4, 5)).astype(np.float32)
    maps = maps.transpose(0, 3, 1, 2) if last else maps
    matrix = random_rotation(6, layer="a", rotation=0, seed=0).astype(np.float32)
    np.testing.assert_allclose(rotated(maps, matrix), np.einsum("vu,buhw->bvhw", matrix, maps), atol=1e-6)
    assert (rotated(np.zeros_like(maps), matrix) == 0).all()


@pytest.mark.parametrize("memory_mib", [56, 0.06])
def test_dissect__scores_rotated_units_as_mixing_sorting_and_counting_slowly(memory_mib):
    net, samples, (truth, category, labels) = digits(), images(), labelled()
    found = dissect(net, samples, labels, layers=LAYERS, quantile=0.1, rotations=2, seed=3, memory_mib=memory_mib)
    batch = next(iter(shown(samples, net, batch_size=11)))
    with torch.no_grad(), capture(net.module.eval(), LAYERS) as seen:
        net.module(*batch.args)
    for name, area in READINGS.items():
        expected = []
        for rotation in range(2):
            scores = []
            for layer in LAYERS:
                maps = seen[layer].numpy().astype(float)
                matrix = random_rotation(maps.shape[1], layer=layer, rotation=rotation, seed=3)
                mixed = np.einsum("vu,buhw->bvhw", matrix, maps).astype(np.float32)
                scores.append(slow_scores(mixed, 0.1, truth, category, area))
            expected.append(np.concatenate(scores))
        assert found[name].shape == (2, *found["threshold"].shape)
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], expected, atol=3e-3)  # pixels beside the threshold
    assert (found["rotated_score_lite"] >= found["rotated_score"] - 1e-12).all()


def test_dissect__has_the_same_rotations_whatever_else_is_asked_for():
    net, samples, (_, _, labels) = digits(), images(), labelled()
    told = []
    both = dissect(net, samples, labels, layers=LAYERS, rotations=2)
    one = dissect(net, samples, labels, layers=LAYERS[1:], rotations=1, thresholds=None, batch_size=64)
    width = one["threshold"].shape[0]
    assert (one["rotated_score"] == both["rotated_score"][:1, -width:]).all()
    plain = dissect(net, samples, labels, layers=LAYERS)
    fixed = dissect(
        net,
        samples,
        labels,
        layers=LAYERS,
        rotations=2,
        thresholds=plain["threshold"] + 1,
        progress=lambda *done: told.append(done),
    )
    assert (fixed["rotated_score"] == both["rotated_score"]).all()
    assert (fixed["threshold"] == plain["threshold"] + 1).all()
    assert (fixed["unit_area"].sum() < plain["unit_area"].sum()).all()
    assert told[-1] == (11, 11)
    for name, values in plain.items():
        assert (values == both[name]).all()
    assert not set(READINGS) & set(plain)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("disk_mib", [0, 0.002])
def test_dissect__has_the_same_rotated_scores_where_images_are_shown_twice(given, disk_mib):
    net, samples, (_, _, labels) = digits(), images(), labelled()
    told, options = [], {"layers": LAYERS, "rotations": 2, "top": 3, "quantile": 0.05, "batch_size": 4}
    if given:
        options["thresholds"] = own_thresholds(net, samples, layers=LAYERS, quantile=0.02)
    once = dissect(net, samples, labels, **options)
    twice = dissect(net, samples, labels, **options, disk_mib=disk_mib, progress=lambda *done: told.append(done))
    assert told[-1] == (22, 22)
    assert once.keys() == twice.keys()
    for name, values in once.items():
        np.testing.assert_array_equal(values, twice[name])


def test_dissect__of_a_dead_layer_has_no_rotated_scores():
    module = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU())
    with torch.no_grad():
        module[0].weight[:] = torch.tensor([1.0, -1.0, 0.5])[:, None, None, None]
        module[0].bias.fill_(0.1)
        module[2].weight.zero_()
        module[2].bias.fill_(-1.0)
    _, _, labels = labelled()
    found = dissect(Net(module), images(), labels, layers=["1", "3"], quantile=0.1, rotations=2)
    assert np.isfinite(found["rotated_score"][:, :3]).all()
    assert np.isnan(found["rotated_score"][:, 3:]).all()
    assert np.isnan(found["rotated_score_lite"][:, 3:]).all()


def test_dissect__names_the_unit_that_is_not_finite_and_not_a_rotated_one():
    net, samples, (_, _, labels) = digits(), images(), labelled()
    with torch.no_grad():
        net.module.conv2.weight[5] = np.inf
    with pytest.raises(NonFiniteError, match=r"layer 'conv2': the map of unit 5 on image 0"):
        dissect(
            net, samples, labels, layers=LAYERS[1:], rotations=1, thresholds=np.zeros(net.module.conv2.out_channels)
        )
    with pytest.raises(SchemaError, match="rotations=-1"):
        dissect(net, samples, labels, layers=LAYERS, rotations=-1)


def test_whole_tally__takes_more_blocks_where_one_could_not_count():
    class Huge:
        label_size = (2**15, 2**15)
        category = np.zeros(1, np.int64)
        n_categories = 1
        indptr = np.zeros(8, np.int64)

    assert whole_tally(Huge(), 2).intersection.shape == (3, 2, 1)
    assert whole_tally(labelled()[2], 2).intersection.shape == (1, 2, 3)
