"""Loss, margin, input-gradient norm and their like: golden numbers, slow versions from the definitions, invariants."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurolens import schema
from neurolens.data import SampleSet
from neurolens.data.arrays import ArrayImages
from neurolens.errors import ModelMismatchError, NonFiniteError, SchemaError
from neurolens.networks import CifarResNet18, DigitsConvNet
from neurolens.samples.measure import MEASUREMENT_VERSION, key_config, measure, measure_batch, parts
from neurolens.study import Preprocessing, Samples

ALL = ("forward", "input_gradient", "grand", "curvature")
TABLE = Samples(grand=True, curvature=True, curvature_draws=2)


@dataclass(frozen=True)
class Net:
    """The two fields of models.Network that measuring reads."""

    module: nn.Module
    preprocessing: Preprocessing


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and affine parameters that a trained network might have."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.1, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
            with torch.no_grad():
                m.weight.uniform_(0.5, 1.5, generator=g)
                m.bias.normal_(0, 0.1, generator=g)
    return module


def images(n: int = 11, channels: int = 1, side: int = 8, classes: int = 10, seed: int = 0) -> SampleSet:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    ids = np.array([f"s{i:03d}" for i in range(n)])
    labels = rng.integers(0, classes, n)
    return SampleSet(ids, labels, tuple(map(str, range(classes))), ArrayImages(pixels))


def digits(seed: int = 0, std: float = 0.5) -> Net:
    torch.manual_seed(seed)
    return Net(seeded(DigitsConvNet()), Preprocessing(mean=(0.25,), std=(std,)))


def slow(module: nn.Module, x: torch.Tensor, y: torch.Tensor, std: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Every quantity from its definition, one sample at a time, in float64."""
    module = copy.deepcopy(module).double().eval()
    out: dict[str, list[float]] = {}
    for i in range(len(x)):
        xi = x[i : i + 1].double().requires_grad_()
        z = module(xi)[0]
        loss = -torch.log(torch.exp(z[y[i]]) / torch.exp(z).sum())
        (g,) = torch.autograd.grad(loss, xi)
        p = torch.exp(z) / torch.exp(z).sum()
        row = {
            "loss": loss,
            "margin": z[y[i]] - max(z[k] for k in range(len(z)) if k != y[i]),
            "p_true": p[y[i]],
            "entropy": -(p * p.log()).sum(),
            "el2n": (p - F.one_hot(y[i], len(z))).square().sum().sqrt(),
            "correct": z.argmax() == y[i],
            "predicted": z.argmax(),
            "grad_norm": g.square().sum().sqrt(),
            "grad_norm_pixel": (g / torch.tensor(std).double().reshape(1, -1, 1, 1)).square().sum().sqrt(),
        }
        for name, value in row.items():
            out.setdefault(name, []).append(value.item())
    return {name: np.array(v) for name, v in out.items()}


def inputs_of(samples: SampleSet, preprocessing: Preprocessing) -> torch.Tensor:
    x = torch.from_numpy(np.asarray(samples.images.load(np.arange(len(samples))))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (x - mean) / std


# golden numbers: a linear softmax, and the table of logits


def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    module = nn.Linear(2, 3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        module.bias.zero_()
    return module, torch.tensor([[1.0, 0.0], [0.5, -0.5], [2.0, 1.0]]), torch.tensor([0, 1, 2])


def test_measure_batch__gives_the_golden_numbers_of_a_linear_softmax():
    values = measure_batch(*linear())
    np.testing.assert_allclose(values["loss"], [0.407606, 1.680270, 5.318175], atol=1e-6)
    np.testing.assert_allclose(values["grad_norm"], [0.452081, 1.138450, 2.135819], atol=1e-6)
    np.testing.assert_allclose(values["el2n"], [0.424336, 1.006459, 1.261373], atol=1e-6)


def test_measure_batch__is_not_scaled_by_the_batch_as_a_mean_loss_would_be():
    module, x, y = linear()
    leaf = x.clone().requires_grad_()
    (mean_reduced,) = torch.autograd.grad(F.cross_entropy(module(leaf), y), leaf)
    np.testing.assert_allclose(measure_batch(module, x, y)["grad_norm"] / 3, mean_reduced.norm(dim=1), rtol=1e-6)


# the whole measurement


@pytest.mark.parametrize("seed", [0, 1])
def test_measure__matches_a_slow_version_of_every_definition(seed: int):
    net, samples = digits(seed, std=0.3), images(seed=seed)
    values = measure(net, samples, parts=ALL, table=TABLE)
    expected = slow(net.module, inputs_of(samples, net.preprocessing), torch.from_numpy(samples.labels), (0.3,))
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_measure__matches_the_slow_version_on_the_cifar_resnet_in_colour():
    torch.manual_seed(0)
    std = (0.2, 0.3, 0.4)
    net = Net(seeded(CifarResNet18(10)), Preprocessing(mean=(0.5, 0.4, 0.3), std=std))
    samples = images(3, 3, 16)
    values = measure(net, samples, parts=("forward", "input_gradient"), table=Samples())
    expected = slow(net.module, inputs_of(samples, net.preprocessing), torch.from_numpy(samples.labels), std)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_measure__returns_the_schema_s_variables_of_the_parts_asked_for_in_its_dtypes():
    for part in ALL:
        values = measure(digits(), images(5), parts=(part,), table=TABLE)
        declared = {v.name: np.dtype(v.dtype) for v in schema.SAMPLES.part(part).variables}
        assert {name: v.dtype for name, v in values.items()} == declared
        assert all(v.shape == (5,) for v in values.values())


def test_measure__gives_the_same_bytes_whether_parts_come_alone_or_together():
    together = measure(digits(), images(), parts=ALL, table=TABLE)
    for part in ALL:
        for name, value in measure(digits(), images(), parts=(part,), table=TABLE).items():
            np.testing.assert_array_equal(value, together[name])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_measure__is_blind_to_the_batch_size(batch_size: int):
    expected = measure(digits(), images(), parts=ALL, table=TABLE, batch_size=5)
    found = measure(digits(), images(), parts=ALL, table=TABLE, batch_size=batch_size)
    for name, value in expected.items():
        # a finite difference of float32 gradients keeps fewer digits than the gradients
        np.testing.assert_allclose(found[name], value, rtol=1e-2 if name == "curvature" else 2e-5, atol=1e-6)


@given(st.permutations(range(7)))
@settings(deadline=None, max_examples=8)
def test_measure__permutes_with_its_samples(order: list[int]):
    samples = images(7)
    net = digits()
    expected = measure(net, samples, parts=ALL, table=TABLE)
    found = measure(net, samples.subset(order), parts=ALL, table=TABLE)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value[order], rtol=1e-2 if name == "curvature" else 2e-5, atol=1e-6)


def test_measure__in_pixel_space_divides_by_the_standard_deviation():
    for std in (1.0, 0.25):
        values = measure(digits(std=std), images(), parts=("input_gradient",), table=Samples())
        np.testing.assert_allclose(values["grad_norm_pixel"], values["grad_norm"] / std, rtol=1e-6)


def test_measure__leaves_the_callers_network_as_it_was():
    net = digits()
    net.module.train()
    before = copy.deepcopy(net.module.state_dict())
    measure(net, images(), parts=ALL, table=TABLE)
    assert net.module.training
    assert all(p.requires_grad and p.grad is None for p in net.module.parameters())
    assert not any(m._forward_hooks for m in net.module.modules())
    for name, tensor in net.module.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_measure__in_bfloat16_is_near_float32_and_keyed_apart():
    net, samples = digits(), images(40)
    exact = measure(net, samples, parts=ALL, table=TABLE)
    rough = measure(net, samples, parts=ALL, table=TABLE.model_copy(update={"bf16": True}))
    deviation = np.abs(rough["loss"] - exact["loss"]).max()
    assert 0 < deviation < 0.1
    np.testing.assert_array_equal(rough["grand"], exact["grand"])
    np.testing.assert_array_equal(rough["curvature"], exact["curvature"])


def test_measure__reports_its_progress_over_all_passes():
    seen: list[tuple[int, int]] = []
    measure(
        digits(), images(5), parts=ALL, table=TABLE, batch_size=4, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(4, 15), (5, 15), (9, 15), (10, 15), (14, 15), (15, 15)]


def test_measure__of_no_samples_is_empty():
    values = measure(digits(), images(3).subset([]), parts=ALL, table=TABLE)
    assert all(v.shape == (0,) for v in values.values())


def test_measure__in_several_threads_gives_the_bytes_of_one():
    nets, samples = [digits(seed) for seed in range(4)], images()

    def in_threads(workers: int, nets: list[Net]) -> list[dict[str, np.ndarray]]:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda net: measure(net, samples, parts=ALL, table=TABLE), nets))

    expected, found = in_threads(1, nets), in_threads(2, nets * 3)
    for one, other in zip(expected * 3, found, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_measure__on_a_gpu_agrees_with_the_cpu():
    expected = measure(digits(), images(), parts=ALL, table=TABLE)
    found = measure(digits(), images(), parts=ALL, table=TABLE, device="cuda")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-2 if name == "curvature" else 1e-4, atol=1e-5)


# parts and keys


def test_parts__are_those_the_study_asks_for():
    assert parts(Samples()) == ("forward", "input_gradient")
    assert parts(Samples(gradients=False)) == ("forward",)
    assert parts(TABLE) == ALL


def test_key_config__changes_with_what_changes_the_numbers_and_with_nothing_else():
    base = {part: key_config(Samples(), part) for part in ALL}
    assert all(config["version"] == MEASUREMENT_VERSION[part] for part, config in base.items())
    changed = {
        "bf16": (Samples(bf16=True), {"forward", "input_gradient"}),
        "draws": (Samples(curvature_draws=3), {"curvature"}),
        "h": (Samples(curvature_h=0.1), {"curvature"}),
        "seed": (Samples(curvature_seed=1), {"curvature"}),
        "arithmetic": (Samples(grand_arithmetic="float32"), {"grand"}),
        "parts": (Samples(gradients=False, grand=True, curvature=True), set()),
        "non-finite": (Samples(allow_non_finite=True), set()),
    }
    for table, stale in changed.values():
        assert {part for part in ALL if key_config(table, part) != base[part]} == stale


def test_key_config__names_the_nearest_part():
    with pytest.raises(SchemaError, match="did you mean 'forward'"):
        key_config(Samples(), "foward")


# what cannot be measured


def broken(layer: str, value: float = float("nan")) -> Net:
    net = digits()
    with torch.no_grad():
        net.module.get_submodule(layer).weight.view(-1)[0] = value
    return net


def test_measure__names_the_first_sample_and_layer_that_are_not_finite():
    with pytest.raises(NonFiniteError, match=r"sample 's000' has loss = nan.*layer 'bn2' .*whose weight holds NaN"):
        measure(broken("bn2"), images(), parts=("forward",), table=Samples())


def test_measure__names_a_later_sample_that_alone_overflows():
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.fc = nn.Linear(64, 64, bias=False), nn.Linear(64, 10)
            nn.init.constant_(self.scale.weight, 1.5e38)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.scale(x.flatten(1)) * 1e-38)

    pixels = np.zeros((6, 8, 8, 1), np.uint8)
    pixels[4] = 255
    samples = replace(images(6), images=ArrayImages(pixels))
    net = Net(Overflowing(), Preprocessing(mean=(0.0,), std=(1.0,)))
    with pytest.raises(NonFiniteError, match=r"sample 's004'.*layer 'scale' \(Linear\)"):
        measure(net, samples, parts=("forward",), table=Samples(), batch_size=3)


def test_measure__finds_a_gradient_that_is_not_finite_though_the_loss_is():
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Linear(64, 64, bias=False), nn.Linear(64, 10)
            nn.init.zeros_(self.first.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.first(x.flatten(1)).sqrt())

    net = Net(Rooted(), Preprocessing(mean=(0.0,), std=(1.0,)))
    with pytest.raises(NonFiniteError, match=r"grad_norm = .*gradient of the output of layer 'first'"):
        measure(net, images(), parts=("input_gradient",), table=Samples())
    assert np.isfinite(measure(net, images(), parts=("forward",), table=Samples())["loss"]).all()


def test_measure__stores_what_is_not_finite_where_the_study_allows_it():
    values = measure(broken("fc"), images(), parts=ALL, table=TABLE.model_copy(update={"allow_non_finite": True}))
    assert np.isnan(values["loss"]).all()
    assert (values["correct"] == -1).all()


def test_measure__refuses_a_network_whose_samples_see_each_other():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(ModelMismatchError, match=r"'1' .*no running statistics"):
        measure(Net(module, Preprocessing(mean=(0.0,), std=(1.0,))), images(), parts=("forward",), table=Samples())


def test_measure__refuses_logits_that_do_not_fit_the_labels():
    small = Net(DigitsConvNet(3), Preprocessing(mean=(0.0,), std=(1.0,)))
    with pytest.raises(ModelMismatchError, match="3 classes, and the labels go from"):
        measure(small, images(), parts=("forward",), table=Samples())
    flat = Net(nn.Flatten(0), Preprocessing(mean=(0.0,), std=(1.0,)))
    with pytest.raises(ModelMismatchError, match=r"returned shape .* logits were needed"):
        measure(flat, images(), parts=("forward",), table=Samples())


def test_measure__names_the_nearest_part():
    with pytest.raises(SchemaError, match="did you mean 'grand'"):
        measure(digits(), images(), parts=("grad",), table=Samples())


def test_samples__import_no_torch_until_a_measurement_is_asked_for():
    code = "import sys, neurolens.samples; assert 'torch' not in sys.modules; neurolens.samples.measure_batch"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
