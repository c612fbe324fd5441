"""Rows of the clusters cube: features against a slow version, clusters of them, what is refused, and study to store."""

import concept_study
import numpy as np
import pytest
import torch
import xarray as xr
from cluster_cases import z
from conftest import STUDY
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn
from units_cases import Net, digits, images

from neurolens import open_run, rows, schema
from neurolens.clusters import measure as measuring
from neurolens.clusters import unit_clusters, unit_features
from neurolens.clusters.measure import FEATURES, NEEDS, axes, chosen, key_config, measure, parts
from neurolens.data import SampleSet, batches
from neurolens.data.arrays import ArrayImages
from neurolens.errors import CaptureError, NonFiniteError, SchemaError
from neurolens.study import Clusters, load_study

LAYERS = ("conv1", "conv2")  # of 16 and 32 units
BOTH = ("features", "clusters")


def table(**options):
    return Clusters(**({"layers": LAYERS, "k": (2, 3)} | options))


def measured(network, samples, wanted=BOTH, **options):
    return measure(network, samples, parts=wanted, table=table(**options))


def maps_of(network, samples, layers=LAYERS):
    """What modules put out on each image, float64 (N, U, H, W), by hooks."""
    seen = {name: [] for name in layers}
    module = network.module
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen[name].append(out.double()))
        for name in layers
    ]
    module.eval()
    with torch.no_grad():
        for batch in batches(samples, network.preprocessing, batch_size=len(samples)):
            module(batch.x)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(found).numpy() for name, found in seen.items()}


def slow_features(maps, threshold=0.1):
    """Spec: spatial mean per image; share above, mean, variance with ddof 0, unit by unit."""
    out = []
    for unit in range(maps.shape[1]):
        a = [float(image[unit].sum() / image[unit].size) for image in maps]
        mean = sum(a) / len(a)
        out.append([sum(x > threshold for x in a) / len(a), mean, sum((x - mean) ** 2 for x in a) / len(a)])
    return np.array(out)


def test_measure__is_what_the_definitions_say():
    network, samples = digits(), images(40)
    found = measured(network, samples)
    slow = np.concatenate([slow_features(maps) for maps in maps_of(network, samples).values()])
    for column, name in enumerate(FEATURES):
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], slow[:, column], rtol=1e-4, atol=1e-6)
    features = np.stack([found[name] for name in FEATURES], axis=1)
    assert found["unit_cluster"].dtype == np.int32
    assert found["unit_cluster"].shape == (2, 48)
    for at in (slice(0, 16), slice(16, 48)):
        alone = unit_clusters(dict_of(features[at]), (2, 3))
        np.testing.assert_array_equal(found["unit_cluster"][:, at], alone)


def dict_of(rows):
    return xr.Dataset({name: ("unit", rows[:, i]) for i, name in enumerate(FEATURES)})


class Given(nn.Module):
    """Passes each image's pixels on as channels: activations are what the test says."""

    def __init__(self, values):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(values))
        self.units, self.head = nn.Identity(), nn.Linear(len(values[0]), 3)

    def forward(self, x):
        number = (x[:, 0, 0, 0] * 0.5 * 255 + 0.25 * 255).round().long()  # undo mean 0.25, std 0.5
        return self.head(self.units(self.rows[number][:, :, None, None].expand(-1, -1, 2, 2)).mean((2, 3)))


def given_images(count):
    pixels = np.repeat(np.arange(count, dtype=np.uint8), 64).reshape(count, 8, 8, 1)
    labels = np.zeros(count, dtype=np.int64)
    return SampleSet(np.array([f"s{i}" for i in range(count)]), labels, ("only",), ArrayImages(pixels))


def test_measure__gives_the_golden_numbers():
    network = Net(Given([[0.05, 0.2], [0.1, 0.4], [0.15, -0.2], [0.3, 0.0]]))
    found = measure(network, given_images(4), parts=BOTH, table=Clusters(layers=("units",), k=(2,)))
    np.testing.assert_array_equal(found["rate"], [0.5, 0.5])  # 0.1 is not above 0.1
    np.testing.assert_allclose(found["mean"], [0.15, 0.10], atol=1e-8)
    np.testing.assert_allclose(found["variance"], [0.00875, 0.05], rtol=1e-6)


def test_measure__of_the_reference_is_sklearns_of_the_numbers_in_its_files():
    network, samples = digits(3), images(50)
    found = measured(network, samples, compat="seed", sample="first", images=30)
    for at in (slice(0, 16), slice(16, 48)):
        stacked = [found["rate"][at], found["mean"][at].astype("f4"), found["variance"][at].astype("f4")]
        scores = z(np.stack(stacked, axis=1))
        for row, k in zip(found["unit_cluster"], (2, 3), strict=True):
            np.testing.assert_array_equal(row[at], KMeans(k, random_state=42).fit(scores).labels_)


@pytest.mark.parametrize("options", [{}, {"compat": "seed"}, {"method": "gmm"}, {"quantile": 0.9}, {"starts": 1}])
def test_measure__finds_the_same_clusters_in_what_the_row_holds(options, monkeypatch):
    network, samples = digits(1), images(40)
    whole = measured(network, samples, **options)
    monkeypatch.setattr(measuring.activations, "measure", None)  # no image is shown
    stored = {name: whole[name] for name in NEEDS["clusters"]}
    again = measure(network, samples, parts=("clusters",), table=table(**options), stored=stored)
    assert list(again) == ["unit_cluster"]
    assert again["unit_cluster"].tobytes() == whole["unit_cluster"].tobytes()


def test_measure__of_clusters_alone_measures_what_it_needs():
    network, samples = digits(1), images(40)
    alone = measured(network, samples, ("clusters",))
    np.testing.assert_array_equal(alone["unit_cluster"], measured(network, samples)["unit_cluster"])
    assert set(measured(network, samples, ("features",))) == set(FEATURES)


def test_measure__is_blind_to_the_batch_and_leaves_the_network_as_it_was():
    network, samples = digits(), images(40)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    small = measure(network, samples, parts=BOTH, table=table(), batch_size=3)
    large = measured(network, samples)
    for name in FEATURES:
        np.testing.assert_allclose(small[name], large[name], rtol=1e-4, atol=1e-6)
    assert network.module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_measure__takes_the_threshold_or_the_layers_quantile():
    network, samples = digits(), images(40)
    maps = maps_of(network, samples)["conv1"]
    half = measured(network, samples, threshold=0.5)["rate"][:16]
    np.testing.assert_allclose(half, slow_features(maps, threshold=0.5)[:, 0], atol=1e-12)
    means = maps.mean(axis=(2, 3)).astype(np.float32)
    high = measured(network, samples, quantile=0.75)["rate"][:16]
    np.testing.assert_allclose(high, slow_features(maps, float(np.quantile(means, 0.75)))[:, 0], atol=1 / 40 + 1e-12)
    assert high.mean() == pytest.approx(0.25, abs=0.01)


def test_measure__lets_another_layer_speak():
    network, samples = digits(), images(30)
    found = measured(network, samples, statistics_at={"conv1": "bn1"})
    slow = slow_features(maps_of(network, samples, ["bn1"])["bn1"])
    np.testing.assert_allclose(found["mean"][:16], slow[:, 1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["mean"][16:], measured(network, samples)["mean"][16:], rtol=1e-6)
    given = axes(network, samples, table(statistics_at={"conv1": "bn1"}))
    assert given["unit"].coords["layer"].tolist() == ["conv1"] * 16 + ["conv2"] * 32


def test_axes__are_units_of_the_layers_and_numbers_of_clusters():
    found = axes(digits(), images(4), table(layers=("conv*",), k=(5, 2)))
    assert list(found) == ["unit", "k"]
    assert found["unit"].coords["layer"].tolist() == ["conv1"] * 16 + ["conv2"] * 32 + ["conv3"] * 32
    assert found["unit"].coords["index"].tolist() == [*range(16), *range(32), *range(32)]
    assert found["k"].ids.tolist() == [5, 2]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"k": (2, 17)}, SchemaError, r"layer 'conv1' has 16 units, and clusters.k = 17 needs"),
        ({"layers": ("conv9",)}, CaptureError, r"'conv9#0' matches none .*did you mean 'conv"),
        ({"statistics_at": {"conv3": "bn3"}}, SchemaError, r"'conv3', no layer here; .*'conv"),
        ({"statistics_at": {"conv1": "bn2"}}, SchemaError, r"'bn2' has 32 units and 'conv1' has 16"),
        ({"statistics_at": {"conv1": "bn*"}}, SchemaError, r"which is 3 layers; name one of them, e.g. 'bn1'"),
    ],
)
def test_axes__say_what_does_not_fit(options, error, words):
    with pytest.raises(error, match=words):
        axes(digits(), images(4), table(**options))


def test_measure__names_the_layer_whose_units_do_not_differ():
    network = digits()
    with torch.no_grad():
        network.module.conv1.weight[2:] = 0
    with pytest.raises(SchemaError, match=r"layer 'conv1' has 16 units but only 3 that differ .* and k=4"):
        measured(network, images(20), k=(4,))


def test_measure__names_layer_and_sample_of_what_is_not_finite():
    network = digits()
    with torch.no_grad():
        network.module.conv2.weight[3] = torch.inf
    with pytest.raises(NonFiniteError, match=r"layer 'conv2', unit 3 .* sample 's000'.*leave the checkpoint out"):
        measured(network, images(5), k=(2,))


@pytest.mark.parametrize("stored", [{}, {name: np.zeros(47) for name in FEATURES}])
def test_measure__refuses_what_other_units_were_like(stored):
    with pytest.raises(SchemaError, match=r"the row holds 'rate' of .* and \(48,\) was needed"):
        measure(digits(), images(4), parts=("clusters",), table=table(), stored=stored)


def test_chosen__takes_the_first_or_as_many_of_each_class():
    samples = images(60)
    assert chosen(samples, table(images=7, sample="first")).ids.tolist() == samples.ids[:7].tolist()
    assert chosen(samples, table(images=60)) is samples
    few = chosen(samples, table(images=12))
    np.testing.assert_array_equal(np.bincount(few.labels), [4, 4, 4])
    assert few.ids.tolist() == sorted(few.ids.tolist())
    assert few.ids.tolist() != chosen(samples, table(images=12, seed=1)).ids.tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 40), st.randoms())
def test_chosen__shares_images_out_whatever_their_order(labels, count, random):
    samples = images(len(labels), classes=4)
    samples.labels[:] = labels
    found = chosen(samples, table(images=count))
    assert len(found) == min(count, len(labels))
    held, took = np.bincount(labels, minlength=4), np.bincount(found.labels, minlength=4)
    short = took < held
    assert took.max() - took[short].min() <= 1 if short.any() else True
    order = list(range(len(labels)))
    random.shuffle(order)
    assert set(chosen(samples.subset(order), table(images=count)).ids) == set(found.ids)


def test_key_config__knows_what_numbers_depend_on():
    assert parts(table()) == BOTH
    default = {part: key_config(table(), part) for part in BOTH}
    for option in ({"images": 9}, {"sample": "first"}, {"seed": 1}, {"threshold": 0.2}, {"quantile": 0.9}):
        now = {part: key_config(table(**option), part) for part in BOTH}
        assert all(now[part] != default[part] for part in BOTH), option
    for option in ({"k": (2, 3, 4)}, {"method": "gmm"}, {"starts": 2}, {"start_seed": 1}, {"compat": "seed"}):
        now = {part: key_config(table(**option), part) for part in BOTH}
        assert [now[part] == default[part] for part in BOTH] == [True, False], option
    assert key_config(table(threshold=0.1, starts=10, start_seed=0), "clusters") == default["clusters"]
    first = [key_config(table(sample="first", seed=seed), "features") for seed in (0, 1)]
    assert first[0] == first[1]
    with pytest.raises(SchemaError, match="no part 'feature'; did you mean 'features'"):
        key_config(table(), "feature")


def test_key_config__changes_with_the_release_of_scikit_learn(monkeypatch):
    before = {part: key_config(table(), part) for part in BOTH}
    monkeypatch.setattr(measuring, "version", lambda name: "99.1.5")
    assert key_config(table(), "features") == before["features"]
    assert key_config(table(), "clusters") == before["clusters"] | {"sklearn": "99.1"}


CLUSTERED = STUDY.replace("[samples]", '[clusters]\nlayers = ["conv2", "conv3"]\nk = [2, 3]\n')


def test_run_rows__keep_clusters_and_find_further_ones_in_what_is_there(make_study, monkeypatch):
    path = make_study(text=CLUSTERED)
    assert {result.outcome for result in concept_study.run(path, "clusters")} == {"computed"}
    assert concept_study.run(path, "clusters") == []
    url = load_study(path).store.url
    first = open_run(url)["clusters"].to_dataset().load()
    assert dict(first.sizes) == {"epoch": 3, "unit": 64, "k": 2}
    assert first["k"].values.tolist() == [2, 3]
    assert bool(first["measured"].all())
    for epoch in range(3):
        again = unit_clusters(first[list(FEATURES)].isel(epoch=epoch), (2, 3))
        np.testing.assert_array_equal(first["unit_cluster"].isel(epoch=epoch).transpose("k", "unit"), again)

    more = load_study(path, overrides=("clusters.k=[2,3,4]",))
    plan = rows.plan(rows.gather(more, "clusters"), rows.open_for_reading(more))
    assert {row.missing for row in plan.rows} == {("clusters",)}
    monkeypatch.setattr(measuring.activations, "measure", None)  # no image is shown again
    assert {result.outcome for result in concept_study.run(path, "clusters", "clusters.k=[2,3,4]")} == {"computed"}
    then = open_run(url)["clusters"].to_dataset().load()
    for name in FEATURES:
        assert then[name].values.tobytes() == first[name].values.tobytes()
    np.testing.assert_array_equal(then["unit_cluster"].sel(k=[2, 3]), first["unit_cluster"])
    assert int(then["unit_cluster"].sel(k=4).max()) == 3


def test_run_rows__fail_with_the_layer_that_has_too_few_units(make_study):
    path = make_study(text=CLUSTERED)
    with pytest.raises(SchemaError, match=r"layer 'conv2' has 32 units, and clusters\.k = 33"):
        concept_study.run(path, "clusters", "clusters.k=[33]")


def test_features__of_the_cube_are_those_of_the_activations_cube(make_study):
    path = make_study(text=CLUSTERED + '[activations]\nlayers = ["conv2", "conv3"]\ndtype = "float32"\n')
    for cube in ("clusters", "activations"):
        concept_study.run(path, cube)
    tree = open_run(load_study(path).store.url)
    ours, theirs = tree["clusters"].to_dataset(), unit_features(tree["activations"].to_dataset())
    for name in ("mean", "variance"):  # activations are kept with 10 bits of mantissa
        np.testing.assert_allclose(ours[name], theirs[name], rtol=5e-3, atol=1e-5)


def test_variables__are_those_that_the_schema_declares():
    found = measured(digits(), images(10))
    assert set(found) == {variable.name for variable in schema.CLUSTERS.variables}
