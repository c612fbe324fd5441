"""How far an answer falls without the highest entries of a map, and curves of it."""

import numpy as np
import pytest
import torch
import xarray as xr
from attribution_cases import dense_net, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurolens.attribution import faithfulness, filled, patch_table, perturbation_curves
from neurolens.errors import DataError, ModelMismatchError, NonFiniteError, SchemaError

WEIGHTS = torch.tensor([[1, 0, 0, 0.5], [0, 0.5, 0.25, 0]], dtype=torch.float64)


def linear():
    network = nn.Linear(4, 2, bias=False).double()
    network.weight.data = WEIGHTS.clone()
    return network


def small(classes=4, side=8):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(6 * (side - 2) ** 2, classes)).double()


def maps(samples=3, names=("a", "b", "c"), side=8, seed=0):
    values = np.random.default_rng(seed).normal(size=(samples, len(names), 3, side, side))
    coords = {"map": list(names), "sample": np.arange(samples) + 10, "label": ("sample", np.arange(samples) % 2)}
    return xr.DataArray(values, dims=("sample", "map", "channel", "y", "x"), coords=coords)


class Counted(nn.Module):
    """Keeps what it is shown."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.shown = []

    def forward(self, x):
        self.shown.append(x.clone())
        return self.module(x)


def slow(network, x, one, cells, fill="zero", share=0.1):
    """Return the drops of one map of one sample, in a loop over pixels or patches."""
    mass = abs(one).sum("channel").to_numpy()
    side = mass.shape[0] // cells
    sums = [
        (-mass[r * side : (r + 1) * side, c * side : (c + 1) * side].sum(), r, c)
        for r in range(cells)
        for c in range(cells)
    ]
    away = torch.zeros(mass.shape, dtype=torch.bool)
    for _, r, c in sorted(sums)[: max(1, round(share * cells**2))]:
        away[r * side : (r + 1) * side, c * side : (c + 1) * side] = True
    with torch.no_grad():
        before, after = network(x[None])[0], network(filled(x[None], away[None], fill))[0]
    c = int(before.argmax())
    p, q = (float(torch.softmax(z, 0)[c]) for z in (before, after))
    return p - q, (p - q) / p, np.log(p / q), float(before[c] - after[c])


def test_faithfulness__golden():
    x = torch.tensor([[2.0, 1, 1, 0]], dtype=torch.float64)
    attribution = xr.DataArray((WEIGHTS[0] * x).abs().numpy(), dims=("sample", "input"))
    found = faithfulness(linear(), x, attribution, share=0.25).isel(sample=0)
    assert float(found["probability"]) == pytest.approx(0.7772998612, abs=1e-10)
    assert float(found["drop"]) == pytest.approx(0.4564785604, abs=1e-10)
    assert float(found["relative_drop"]) == pytest.approx(0.5872618576, abs=1e-10)
    assert float(found["logit_drop"]) == 2
    assert float(found["log_prob_drop"]) == pytest.approx(np.log(0.7772998612 / 0.3208213008), abs=1e-9)
    assert found["target"].item() == 0
    assert found.attrs["count"] == 1


@pytest.mark.parametrize("fill", ["zero", "mean", "blur", "road", 0.3], ids=str)
@pytest.mark.parametrize("grid", [None, 4])
def test_faithfulness__is_what_a_loop_finds(grid, fill):
    network, x = small().eval(), pictures(3, side=8).double()
    found = faithfulness(network, x, maps(), grid=grid, fill=fill)
    assert found["drop"].dims == ("sample", "map")
    for sample in range(3):
        for at in range(3):
            expected = slow(network, x[sample], maps()[sample, at], grid or 8, fill)
            got = [float(found[name][sample, at]) for name in ("drop", "relative_drop", "log_prob_drop", "logit_drop")]
            np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-12)


def test_faithfulness__of_patches_is_that_of_their_table():
    network, x = small(), pictures(3, side=8).double()
    found = faithfulness(network, x, maps(), grid=3)
    xr.testing.assert_identical(found, faithfulness(network, x, patch_table(maps(), grid=3)))
    assert found.attrs["count"] == 1
    assert found.attrs["entries"] == 9


def test_faithfulness__leaves_what_is_outside_of_the_grid():
    network, x = Counted(small(side=8)), pictures(1, side=8).double()
    faithfulness(network, x, maps(1), grid=3, share=1)  # cells of 2 × 2 pixels
    last = network.shown[-1]
    assert (last[..., :6, :6] == 0).all()
    assert torch.equal(last[..., 6:, :], x[..., 6:, :])
    assert torch.equal(last[..., 6:], x[..., 6:])


def test_faithfulness__shows_what_is_equal_once():
    network, x = Counted(small()), pictures(3, side=8).double()
    twice = xr.concat([maps(), maps() * 7, -maps()], "scale")  # the same order three times
    found = faithfulness(network, x, twice, grid=4, batch_size=5)
    distinct = {shown.numpy().tobytes() for batch in network.shown for shown in batch}
    assert sum(map(len, network.shown)) == found.attrs["pictures"] == len(distinct)
    assert len(distinct) <= 3 + 9
    assert len(network.shown) == found.attrs["forwards"]
    assert max(map(len, network.shown)) <= 5
    assert found["drop"].dims == ("sample", "scale", "map")
    for at in range(3):
        xr.testing.assert_allclose(found["drop"].isel(scale=at), faithfulness(network, x, maps(), grid=4)["drop"])


def test_faithfulness__counts_passes():
    found = faithfulness(small(), pictures(3, side=8).double(), maps(), batch_size=4)
    assert found.attrs["pictures"] == 3 + 9
    assert found.attrs["forwards"] == 1 + 1 + 3  # one sample to see its memory, two more, nine masked ones


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.floats(1e-3, 1e3))
def test_faithfulness__is_blind_to_batches_and_scale(batch_size, scale):
    network, x = small(), pictures(3, side=8).double()
    whole = faithfulness(network, x, maps(), grid=4)
    xr.testing.assert_allclose(faithfulness(network, x, maps() * scale, grid=4, batch_size=batch_size), whole)
    lazy = faithfulness(network, x, maps().chunk(sample=1, y=3), grid=4)
    xr.testing.assert_allclose(lazy, whole)


def test_faithfulness__of_given_classes():
    network, x = small(), pictures(3, side=8).double()
    labels = xr.DataArray([3, 1, 0], dims="sample")
    found = faithfulness(network, x, maps(), target=labels)
    np.testing.assert_array_equal(found["target"], labels)
    with torch.no_grad():
        p = torch.softmax(network.eval()(x), 1)[torch.arange(3), torch.as_tensor(labels.to_numpy())]
    np.testing.assert_allclose(found["probability"], p)
    np.testing.assert_array_equal(found["label"], [0, 1, 0])  # coordinates of samples are kept


def test_faithfulness__of_a_map_without_mass_is_missing():
    network, x, some = small(), pictures(3, side=8).double(), maps()
    some[0, 1] = 0
    some[1, 2, 0, 0, 0] = np.nan
    found = faithfulness(network, x, some)
    missing = np.zeros((3, 3), dtype=bool)
    missing[0, 1] = missing[1, 2] = True
    for name in ("drop", "relative_drop", "log_prob_drop", "logit_drop"):
        np.testing.assert_array_equal(np.isnan(found[name]), missing)
    assert found.attrs["pictures"] == 3 + 7
    first = np.zeros((3, 8, 8))
    first[:, 0, :6] = 1
    expected = faithfulness(network, x, xr.DataArray(first, dims=("sample", "y", "x")))
    assert float(faithfulness(network, x, some, compat="seed")["drop"][0, 1]) == pytest.approx(
        float(expected["drop"][0])
    )


def test_faithfulness__leaves_the_network_as_it_was():
    network, x = small(), pictures(2, side=8).double()
    network[2].eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    faithfulness(network, x, maps(2))
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_faithfulness__keeps_to_its_budget():
    network, x = dense_net(), pictures(4)
    values = np.random.default_rng(0).normal(size=(4, 30, 3, 32, 32))
    some = xr.DataArray(values, dims=("sample", "map", "channel", "y", "x"))
    found = faithfulness(network, x, some, budget_mib=1)
    assert 1 <= found.attrs["batch_size"] < 32
    xr.testing.assert_allclose(found, faithfulness(network, x, some), atol=1e-6)
    with pytest.raises(SchemaError, match=r"budget_mib=0\.001 was given.*raise it"):
        faithfulness(network, x, some, budget_mib=0.001)


def test_faithfulness__says_what_is_wrong():
    network, x = small(), pictures(3, side=8).double()
    with pytest.raises(DataError, match="dim 'sample' of as many"):
        faithfulness(network, x[:2], maps())
    with pytest.raises(DataError, match=r"'y': 6.*\(3, 8, 8\)"):
        faithfulness(network, x, maps(side=6))
    with pytest.raises(DataError, match="'input': 8"):
        faithfulness(network, x, maps().isel(channel=0, y=0, drop=True).rename(x="input"))
    with pytest.raises(DataError, match="a class from 0 for each"):
        faithfulness(network, x, maps(), target=[1, 2])
    with pytest.raises(DataError, match="classes 0 to 3"):
        faithfulness(network, x, maps(), target=[1, 2, 4])
    with pytest.raises(SchemaError, match=r"share=0\.0 is no share"):
        faithfulness(network, x, maps(), share=0.0)
    with pytest.raises(SchemaError, match="did you mean 'mean'"):
        faithfulness(network, x, maps(), fill="means")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="batch_size=0"):
        faithfulness(network, x, maps(), batch_size=0)
    with pytest.raises(ModelMismatchError):
        faithfulness(nn.Identity(), x, maps())
    x[1, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="sample number 1"):
        faithfulness(network, x, maps())


@pytest.mark.parametrize("first", ["most", "least"])
@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_perturbation_curves__are_what_a_loop_finds(kind, first):
    network, x, shares = small().eval(), pictures(2, side=8).double(), (0, 0.2, 0.5, 1)
    found = perturbation_curves(network, x, maps(2), kind=kind, first=first, shares=shares, grid=4, fill="mean")
    assert found["probability"].dims == ("sample", "map", "share")
    table = patch_table(maps(2), grid=4).to_numpy().reshape(2, 3, 16)
    for sample in range(2):
        means = x[sample].mean((1, 2))
        with torch.no_grad():
            target = int(network(x[sample : sample + 1]).argmax())
        for at in range(3):
            order = sorted(range(16), key=lambda i: table[sample, at, i] * (1 if first == "least" else -1))
            for place, share in enumerate(shares):
                one = x[sample].clone()
                steps = set(order[: round(share * 16)])
                for cell in steps if kind == "deletion" else set(range(16)) - steps:
                    row, column = divmod(cell, 4)
                    one[:, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] = means[:, None, None]
                with torch.no_grad():
                    logits = network(one[None])[0]
                assert float(found["logit"][sample, at, place]) == pytest.approx(float(logits[target]))
                p = float(torch.softmax(logits, 0)[target])
                assert float(found["probability"][sample, at, place]) == pytest.approx(p)
                assert float(found["log_prob"][sample, at, place]) == pytest.approx(np.log(p))
            area = np.trapezoid(found["probability"][sample, at], shares)
            assert float(found["area"][sample, at]) == pytest.approx(float(area))


def test_perturbation_curves__begin_and_end_alike():
    network, x = small(), pictures(2, side=8).double()
    away = perturbation_curves(network, x, maps(2), grid=4)
    put = perturbation_curves(network, x, maps(2), grid=4, kind="insertion", first="least")
    xr.testing.assert_allclose(away["probability"], put["probability"][..., ::-1].assign_coords(share=away["share"]))
    assert away.attrs["pictures"] <= 2 + 2 + 2 * 3 * 9  # whole and empty samples are shared by maps
    drop = faithfulness(network, x, maps(2), grid=4, share=0.5)
    whole = away["probability"].isel(share=0, drop=True)
    xr.testing.assert_allclose(whole - away["probability"].sel(share=0.5, drop=True), drop["drop"])
    np.testing.assert_allclose(whole, drop["probability"].expand_dims(map=3, axis=1))


def test_perturbation_curves__of_a_map_without_mass_are_missing():
    some = maps(2)
    some[0, 1] = 0
    found = perturbation_curves(small(), pictures(2, side=8).double(), some)
    assert np.isnan(found["probability"][0, 1]).all()
    assert np.isnan(found["area"]).sum() == 1


def test_perturbation_curves__say_what_is_wrong():
    network, x = small(), pictures(2, side=8).double()
    with pytest.raises(SchemaError, match="did you mean 'deletion'"):
        perturbation_curves(network, x, maps(2), kind="delete")  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="did you mean 'most'"):
        perturbation_curves(network, x, maps(2), first="mos")  # type: ignore[arg-type]
    for shares in [(0.5,), (0, 0.5, 0.5), (0, 2)]:
        with pytest.raises(SchemaError, match="do not rise within 0 and 1"):
            perturbation_curves(network, x, maps(2), shares=shares)
    with pytest.raises(DataError, match="a pixel that is left"):
        perturbation_curves(network, x, maps(2), fill="road")
