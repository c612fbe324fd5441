"""Rows of the attributions cube: every number against captum with a hook, one set and one mask at a time."""

import warnings

import captum.attr
import numpy as np
import pytest
import torch
import xarray as xr
from attribution_measure_cases import (
    ALL,
    NETWORKS,
    PREPROCESSING,
    close,
    measured,
    pictures,
    residual,
    sets_of,
    shown_to,
    slow_falls,
    slow_maps,
    slow_values,
)

from neurolens import schema
from neurolens.attribution import blur_fill, faithfulness, patch_table, perturbation_curves, plan, sparsity, unit_masks
from neurolens.attribution.captum_methods import captum_map
from neurolens.attribution.measure import axes, measure_block
from neurolens.attribution.sets import unit_sets
from neurolens.study import Attributions

UNITS = NETWORKS["residual"][2]


def case(name="residual", table=ALL, n=3, **options):
    make, side, units, axis = NETWORKS[name]
    network, samples = make(), pictures(n, side, classes=4)
    sets = sets_of(table, units)
    return network, samples, sets, axis, measured(network, samples, table, sets, chosen=samples.ids.tolist(), **options)


@pytest.fixture(scope="module", params=NETWORKS)
def whole(request):
    """All parts of all sets, of a network with residual stages, a dense one, and a transformer."""
    network, samples, sets, axis, values = case(request.param)
    return network, samples, sets, axis, values


def test_measure__gives_the_declared_arrays(whole):
    network, samples, sets, _, values = whole
    found = axes(network, samples, ALL)
    sizes = {dim: len(axis) for dim, axis in found.items()} | {"sample": 3, "map": len(sets), "mate": 3}
    assert list(values) == [v.name for v in schema.ATTRIBUTIONS.variables]
    for variable in schema.ATTRIBUTIONS.variables:
        assert values[variable.name].shape == tuple(sizes[dim] for dim in variable.dims[1:]), variable.name
        assert values[variable.name].dtype == variable.dtype


def test_measure__maps_are_captums_with_a_hook(whole):
    network, samples, sets, axis, values = whole
    wanted = slow_maps(network, samples, ALL, sets, torch.as_tensor(values["target"]).long(), axis=axis)
    found = values["full_map"]
    for at in np.ndindex(*found.shape[:3]):
        gap = np.linalg.norm(found[at] - wanted[at])
        assert gap <= 1e-3 * np.linalg.norm(wanted[at]) + 1e-6


def test_measure__keeps_of_maps_what_loops_keep(whole):
    _, _, sets, _, values = whole
    wanted = slow_values(values["full_map"], sets, ALL)
    for name, array in wanted.items():
        close(values[name].astype(np.float64), array, rtol=1e-3 if name.startswith("reduced") else 1e-5)


def test_measure__falls_are_those_of_one_mask_at_a_time(whole):
    network, samples, _, _, values = whole
    some = np.s_[:, ::6]
    falls, (deletion, insertion) = slow_falls(network, samples, values["full_map"][some], ALL, values["scored"])
    close(values["masked_logit"][some], falls[..., 0])
    close(values["masked_log_prob"][some], falls[..., 1])
    close(values["deletion"][some], deletion)
    close(values["insertion"][some], insertion)


def test_measure__answers_are_those_of_a_forward(whole):
    network, samples, _, _, values = whole
    module, x = shown_to(network, samples)
    with torch.no_grad():
        logits = module(x).double()
        start = module(torch.zeros_like(x)).double()
    predicted, rows = logits.argmax(dim=1), torch.arange(3)
    for name in ("target", "predicted", "scored"):
        np.testing.assert_array_equal(values[name], predicted)
    own = logits[rows, torch.as_tensor(samples.labels)]
    np.testing.assert_array_equal(values["label_rank"], (logits > own[:, None]).sum(dim=1))
    close(values["output"], logits[rows, predicted].numpy())
    close(values["baseline_output"], start[rows, predicted].numpy())
    close(values["logit"], logits[rows, predicted].numpy())
    close(values["log_prob"], torch.log_softmax(logits, 1)[rows, predicted].numpy())


def test_measure__curves_are_perturbation_curves(whole):
    network, samples, _, _, values = whole
    module, x = shown_to(network, samples)
    table = xr.DataArray(values["patch"][:, :4], dims=("sample", "map", "attribution", "patch_y", "patch_x"))
    for kind in ("deletion", "insertion"):
        found = perturbation_curves(module, x, table, kind=kind, target=values["scored"].astype(np.int64))
        close(values[kind][:, :4], found["probability"].to_numpy())


def test_measure__clusters_add_up_to_their_union_and_to_the_whole():
    unions = {"pair": ("stage1/k3/0", "stage1/k3/2")}
    table = ALL.model_copy(update={"unions": unions, "controlled": (), "methods": ("integrated_gradients",)})
    _, _, sets, _, values = case(table=table)
    names = [one.name for one in sets]
    found = {name: values["full_map"][:, at] for at, name in enumerate(names)}
    close(found["stage1/pair"], found["stage1/k3/0"] + found["stage1/k3/2"])
    for cut in UNITS:
        close(sum(found[f"{cut}/k3/{c}"] for c in range(3)), found["whole"])
        close(found[f"{cut}/without k3/1"], found["whole"] - found[f"{cut}/k3/1"])
    change = values["output"] - values["baseline_output"]
    np.testing.assert_allclose(values["total"][:, names.index("whole"), 0], change, rtol=0.2)


def test_measure__sets_in_another_order_give_the_same_numbers(whole):
    network, samples, sets, _, values = whole
    order = np.random.default_rng(0).permutation(len(sets))
    found = measured(network, samples, ALL, [sets[at] for at in order], chosen=samples.ids.tolist())
    for name, array in values.items():
        of_sets = "map" in next(v for v in schema.ATTRIBUTIONS.variables if v.name == name).dims
        close(found[name], array[:, order] if of_sets else array, rtol=1e-3 if "reduced" in name else 1e-5)


def test_measure__some_sets_give_the_numbers_of_all():
    network, samples, sets, _, values = case()
    some = [at for at, one in enumerate(sets) if one.cut == "stage2" and one.clustering == "k3"]
    some += [at for at, one in enumerate(sets) if one.kind == "control"][:1]
    found = measured(network, samples, ALL, [sets[at] for at in some], chosen=samples.ids.tolist())
    for name in (v.name for v in schema.ATTRIBUTIONS.variables if "map" in v.dims):
        close(found[name], values[name][:, some], rtol=1e-3 if "reduced" in name else 1e-5)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"memory_mib": 3}])
def test_measure__numbers_depend_neither_on_batches_nor_on_memory(options):
    table = ALL.model_copy(update={"full": 0, "reduced": False})
    small = table.model_copy(update={name: value for name, value in options.items() if name == "memory_mib"})
    network, samples, sets, _, values = case(table=table, n=4)
    how = {name: value for name, value in options.items() if name != "memory_mib"}
    found = measured(network, samples, small, sets, **how)
    for name, array in values.items():
        close(found[name], array, rtol=1e-4)


def test_measure__a_sample_has_the_numbers_that_it_has_alone():
    network, samples, sets, _, values = case(n=4)
    alone = measured(network, samples.subset([2]), ALL, sets, chosen=samples.ids.tolist())
    for name, array in values.items():
        close(alone[name][0], array[2], rtol=1e-3 if "reduced" in name else 1e-4)


def test_measure__explains_and_scores_the_classes_that_are_asked_for():
    table = ALL.model_copy(update={"target": "label", "scored": "predicted", "controlled": ()})
    network, samples, sets, _, values = case(table=table, n=5)
    np.testing.assert_array_equal(values["target"], samples.labels)
    np.testing.assert_array_equal(values["scored"], values["predicted"])
    assert (values["predicted"] != values["target"]).any()
    labels = torch.as_tensor(samples.labels)
    wanted = slow_maps(network, samples, table, sets, labels)
    np.testing.assert_allclose(values["full_map"], wanted, atol=1e-3 * np.abs(wanted).max())
    falls, (deletion, _) = slow_falls(network, samples, values["full_map"][:, :3], table, values["predicted"])
    close(values["masked_logit"][:, :3], falls[..., 0])
    close(values["deletion"][:, :3], deletion)
    module, x = shown_to(network, samples)
    close(values["output"], module(x)[range(5), labels].detach())


def test_measure__follows_the_references_arithmetic():
    table = ALL.model_copy(update={"compat": "seed", "controlled": ()})
    network, samples, _, _, values = case(table=table)
    maps = xr.DataArray(values["full_map"], dims=("sample", "map", "attribution", "channel", "y", "x"))
    np.testing.assert_array_equal(values["pixel_sparsity"], sparsity(maps, compat="seed"))
    module, x = shown_to(network, samples)
    for level, grid in enumerate((None, table.grid)):
        found = faithfulness(module, x, maps, grid=grid, compat="seed", target=values["target"].astype(np.int64))
        logit = values["logit"][:, None, None]
        close(values["masked_logit"][..., level], logit - found["logit_drop"].to_numpy())
    curves = perturbation_curves(module, x, patch_table(maps, grid=4), target=values["target"].astype(np.int64))
    close(values["deletion"], curves["probability"].to_numpy())


@pytest.mark.parametrize("explain", ["log_prob", "margin"])
def test_measure__explains_what_is_asked_for(explain):
    table = ALL.model_copy(update={"explain": explain, "curves": False, "controlled": (), "methods": ("saliency",)})
    network, samples, _, _, values = case(table=table)
    module, x = shown_to(network, samples)
    x.requires_grad_()
    logits = module(x)
    own = logits.max(dim=1).values
    if explain == "log_prob":
        explained = torch.log_softmax(logits, 1).max(dim=1).values
    else:
        explained = own - logits.topk(2).values[:, 1]
    close(values["output"], explained.detach().numpy())
    (gradient,) = torch.autograd.grad(explained.sum(), x)
    close(values["full_map"][:, 0, 0], gradient.abs().numpy())


@pytest.mark.parametrize("baseline", ["black", "mean", "blur", 0.75])
def test_measure__paths_start_where_the_study_says(baseline):
    table = ALL.model_copy(update={"baseline": baseline, "methods": ("integrated_gradients",), "controlled": ()})
    network, samples, sets, _, values = case(table=table)
    module, x = shown_to(network, samples)
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (PREPROCESSING.mean, PREPROCESSING.std))
    start = {
        "black": (-mean / std).expand_as(x),
        "mean": x.mean((2, 3), keepdim=True).expand_as(x),
        "blur": blur_fill(x, torch.zeros_like(x[:, 0], dtype=torch.bool)),
        0.75: torch.full_like(x, 0.75),
    }[baseline]
    targets = torch.as_tensor(values["target"]).long()
    wanted = slow_maps(network, samples, table, sets, targets, baselines=start)
    np.testing.assert_allclose(values["full_map"], wanted, atol=1e-3 * np.abs(wanted).max())
    with torch.no_grad():
        close(values["baseline_output"], module(start)[range(3), targets].numpy())


def test_measure__keeps_whole_maps_of_chosen_samples_alone():
    network, samples, sets, _, _ = case(n=4)
    found = measured(network, samples, ALL, sets, chosen=["s001", "another"])["full_map"]
    np.testing.assert_array_equal(np.isfinite(found).all(axis=(1, 2, 3, 4, 5)), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(found).all(axis=(1, 2, 3, 4, 5)), [True, False, True, True])
    nothing = measured(network, samples, ALL, sets)["full_map"]
    assert np.isnan(nothing).all()
    assert nothing.shape == found.shape


def test_measure__a_map_without_gradient_has_no_scores():
    network, samples = residual(), pictures(2)
    with torch.no_grad():
        network.module.stage2.second.weight[1:] = 0  # nothing goes through the units but the first
        network.module.stage2.second.bias[:] = 1
        network.module.stage2.around.weight[1:] = 0
    sets = unit_sets({"stage2": {"k2": np.minimum(np.arange(8), 1)}})
    values = measured(network, samples, ALL, sets)
    at = [one.name for one in sets].index("stage2/k2/1")
    for name in ("pixel_sparsity", "masked_logit", "masked_log_prob", "deletion", "insertion"):
        assert np.isnan(values[name][:, at]).all(), name
        assert np.isfinite(values[name][:, 0]).all(), name
    for name in ("total", "mass", "norm", "patch", "reduced", "reduced_scale"):
        assert (values[name][:, at] == 0).all(), name
    seed = measured(network, samples, ALL.model_copy(update={"compat": "seed"}), sets)
    assert (seed["pixel_sparsity"][:, at] == 0).all()
    assert np.isfinite(seed["masked_logit"][:, at]).all()
    assert np.isnan(seed["deletion"][:, at]).all()


@pytest.mark.parametrize("name", ["DeepLift", "GradientShap", "FeatureAblation", "KernelShap", "IntegratedGradients"])
def test_measure__captum_explains_all_units_together(name):
    methods = ("saliency", f"captum.{name}")
    table = ALL.model_copy(update={"methods": methods, "baseline": "black", "curves": False, "controlled": ()})
    network, samples, _, _, values = case(table=table, n=2)
    whole, others = values["full_map"][:, 0, 1], values["full_map"][:, 1:, 1]
    assert np.isnan(others).all()
    for part in ("patch", "total", "pixel_sparsity", "masked_logit", "reduced"):
        assert np.isnan(values[part][:, 1:, 1]).all()
        assert np.isfinite(values[part][:, 0, 1]).all()
    module, x = shown_to(network, samples)
    start = (-torch.tensor(PREPROCESSING.mean) / torch.tensor(PREPROCESSING.std)).view(1, -1, 1, 1)
    cells = torch.div(torch.arange(10), 2, rounding_mode="floor").clamp(max=3)
    given = (
        {"feature_mask": (cells[:, None] * 4 + cells)[None, None]} if name in ("FeatureAblation", "KernelShap") else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            kind, one = getattr(captum.attr, name)(module), x[row : row + 1]
            target = int(values["target"][row])
            wanted = kind.attribute(one, baselines=start.expand_as(one), target=target, **given)
            close(whole[row], wanted[0].detach().numpy(), rtol=1e-3)


def test_captum_map__draws_the_same_numbers_and_leaves_the_generators_alone():
    module, x = shown_to(residual(), pictures(1))
    drawn = {}
    for call in range(2):
        torch.manual_seed(call)
        np.random.seed(call)
        drawn[call] = captum_map("captum.GradientShap", module, x, torch.tensor([1]), start=torch.zeros_like(x))
        after = torch.rand(1), np.random.rand()
        torch.manual_seed(call)
        np.random.seed(call)
        assert after == (torch.rand(1), np.random.rand())
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_measure_block__runs_as_often_as_the_plan_says():
    table = Attributions(grid=4, steps=50, controlled=("*/without k3/0",), controls=3, curves=True)
    network, samples = residual(), pictures(3)
    sets = sets_of(table, UNITS)
    masks = {c: unit_masks({one.name: one.units for one in sets if one.cut == c}) for c in UNITS}
    made = plan(masks)
    seen = []
    hook = network.module.stage1.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    _, cost = measure_block(network, samples, parts=("answers", "maps"), table=table, sets=sets, mates=3, batch_size=17)
    hook.remove()
    assert cost == made.cost(3 * 51, batch_size=17, baselines=1)
    assert cost.forwards == 9
    assert cost.partial_backwards == 9 * made.partial
    assert made.partial < len(sets) - 1
    assert len(seen) > cost.forwards


def test_measure__gradients_go_back_in_bfloat16_where_the_study_says():
    table = Attributions(grid=4, steps=6, full=1)
    network, samples, sets, _, exact = case("dense", table=table)
    found = measured(network, samples, table.model_copy(update={"cotangents": "bfloat16"}), sets, chosen=samples.ids)
    for at in range(1, len(sets)):
        gap = np.linalg.norm(found["full_map"][:, at, 0] - exact["full_map"][:, at, 0])
        assert 0 < gap <= 0.03 * np.linalg.norm(exact["full_map"][:, at, 0])
    np.testing.assert_array_equal(found["full_map"][:, 0], exact["full_map"][:, 0])
