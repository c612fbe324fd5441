"""What a block of samples is measured on, and the slow way: captum with a hook, one set, map and mask at a time."""

import captum.attr
import numpy as np
import torch
from attribution_cases import blocked, dense_net, vision_transformer
from torch import nn
from units_cases import Net

from neurolens.attribution import filled
from neurolens.attribution.curves import SHARES
from neurolens.attribution.measure import measure, parts
from neurolens.attribution.sets import unit_sets
from neurolens.data import SampleSet, batches
from neurolens.data.arrays import ArrayImages
from neurolens.study import Attributions, Preprocessing

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
CAPTUM = {
    "integrated_gradients": captum.attr.IntegratedGradients,
    "saliency": captum.attr.Saliency,
    "input_x_gradient": captum.attr.InputXGradient,
}


class Stage(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, inputs, units, stride=1):
        super().__init__()
        self.first = nn.Conv2d(inputs, units, 3, stride, 1)
        self.norm = nn.BatchNorm2d(units)
        self.second = nn.Conv2d(units, units, 3, 1, 1)
        self.around = nn.Conv2d(inputs, units, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.second(torch.relu(self.norm(self.first(x)))) + self.around(x))


class Residual(nn.Module):
    """Two residual stages of 6 and 8 units, and 5 classes."""

    def __init__(self):
        super().__init__()
        self.stage1, self.stage2, self.head = Stage(3, 6), Stage(6, 8, 2), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(x)).mean((2, 3)))


def residual():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Residual()
        for norm in (module.stage1.norm, module.stage2.norm):
            norm.running_mean.normal_(0, 0.2)
            nn.init.normal_(norm.bias, 0, 0.3)
        nn.init.normal_(module.head.weight, 0, 2.0)
    return Net(module.train(), PREPROCESSING)


def transformer():
    with torch.random.fork_rng():
        return Net(vision_transformer().train(), PREPROCESSING)


def dense():
    with torch.random.fork_rng():
        return Net(dense_net().train(), PREPROCESSING)


def pictures(n=5, side=10, classes=5, seed=0):
    random = np.random.default_rng(seed)
    return SampleSet(
        np.array([f"s{i:03d}" for i in range(n)]),
        random.integers(0, classes, n),
        tuple(f"class {c}" for c in range(classes)),
        ArrayImages(random.integers(0, 256, (n, side, side, 3), dtype=np.uint8)),
    )


NETWORKS = {
    "residual": (residual, 10, {"stage1": 6, "stage2": 8}, 1),
    "dense": (dense, 32, {"features.denseblock1": 16, "features.denseblock2": 16}, 1),
    "transformer": (transformer, 16, {"encoder.layers.encoder_layer_0": 12, "encoder.layers.encoder_layer_1": 12}, 2),
}
"""A network, the side of its images, its cuts with their units, and the axis of those."""


def sets_of(table, units, ks=(2, 3)):
    """The whole, both kinds of sets of the clusters of each layer, and what the table adds."""
    random = np.random.default_rng(1)
    labels = {cut: {f"k{k}": random.permutation(np.arange(n) % k) for k in ks} for cut, n in units.items()}
    return unit_sets(labels, table)


def measured(network, samples, table, sets, **options):
    return measure(network, samples, parts=parts(table), table=table, sets=sets, mates=3, **options)


def shown_to(network, samples):
    """The network in eval mode, and its input."""
    (batch,) = batches(samples, network.preprocessing, batch_size=len(samples))
    return network.module.eval(), batch.x.contiguous()


def slow_maps(network, samples, table, sets, targets, *, axis=1, baselines=0.0):
    """Return (sample, map, attribution, channel, y, x) by captum, with a hook that blocks the gradient."""
    module, x = shown_to(network, samples)
    rows = []
    for one in sets:
        layer = one.cut or next(other.cut for other in sets if other.cut)
        units = one.units if one.cut else np.ones(len(next(o.units for o in sets if o.cut == layer)), dtype=bool)
        with blocked(module, layer, units, axis):
            found = []
            for method in table.methods:
                given = {"n_steps": table.steps, "baselines": baselines} if method == "integrated_gradients" else {}
                kind = CAPTUM[method](module)
                found.append(kind.attribute(x.clone().requires_grad_(), target=targets, **given).detach().numpy())
        rows.append(np.stack(found, axis=1))
    return np.stack(rows, axis=1)


def slow_sparsity(entries, mass):
    """Return the share of entries beyond the fewest that hold the mass."""
    total, held = entries.sum(), 0.0
    for count, value in enumerate(sorted(entries.ravel(), reverse=True), start=1):
        held += value
        if held >= mass * total * (1 - 1e-12):
            return 1 - count / entries.size
    return np.nan


def slow_patches(one, grid):
    """Return |attribution| by patch."""
    mass = np.abs(one.astype(np.float64)).sum(axis=0)
    cell = [side // grid for side in mass.shape]
    return np.array(
        [
            [mass[r * cell[0] : (r + 1) * cell[0], c * cell[1] : (c + 1) * cell[1]].sum() for c in range(grid)]
            for r in range(grid)
        ]
    )


def slow_values(maps, sets, table):
    """Return what is kept of (sample, map, attribution, channel, y, x)."""
    lead = maps.shape[:3]
    found = {name: np.full(lead, np.nan) for name in ("total", "mass", "norm", "pixel_sparsity", "reduced_scale")}
    found |= {"dot": np.full((*lead, 3), np.nan), "reconstruction_error": np.full(lead, np.nan)}
    found |= {"patch": np.zeros((*lead, table.grid, table.grid))}
    found |= {name: np.zeros((*lead, *maps.shape[4:])) for name in ("reduced", "reduced_mass")}
    for at in np.ndindex(*lead):
        one = maps[at].astype(np.float64)
        mass = np.abs(one).sum(axis=0)
        found["total"][at], found["mass"][at], found["norm"][at] = one.sum(), mass.sum(), np.sqrt((one**2).sum())
        found["pixel_sparsity"][at] = slow_sparsity(mass, table.mass)
        found["patch"][at] = slow_patches(one, table.grid)
        found["reduced_scale"][at] = mass.max()
        if mass.any():
            found["reduced"][at], found["reduced_mass"][at] = one.sum(axis=0) / mass.max(), mass / mass.max()
        name = sets[at[1]]
        if name.kind != "only":
            continue
        mates = [i for i, o in enumerate(sets) if (o.cut, o.clustering, o.kind) == (name.cut, name.clustering, "only")]
        for other in mates:
            found["dot"][at][sets[other].cluster] = (one * maps[at[0], other, at[2]]).sum()
        whole = maps[at[0], [o.kind for o in sets].index("whole"), at[2]]
        found["reconstruction_error"][at] = np.abs(maps[at[0], mates, at[2]].sum(axis=0) - whole).mean()
    return found


def order(values):
    """Numbers of entries by falling mass, the first of equal ones first."""
    return sorted(range(values.size), key=lambda i: (-values.ravel()[i], i))


def pixels_of(cells, grid, side):
    """The pixels of patches."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    for cell in cells:
        r, c, size = cell // grid, cell % grid, side // grid
        mask[r * size : (r + 1) * size, c * size : (c + 1) * size] = True
    return mask


def slow_falls(network, samples, maps, table, scored):
    """Return masked logits and log-probabilities by level, and both curves, one forward per mask."""
    module, x = shown_to(network, samples)
    side = x.shape[-1]

    def answer(sample, mask):
        with torch.no_grad():
            logits = module(filled(x[sample : sample + 1], mask[None], table.fill))[0].double()
        c = int(scored[sample])
        return float(logits[c]), float(torch.log_softmax(logits, 0)[c])

    falls = np.zeros((*maps.shape[:3], 2, 2))
    curves = np.zeros((2, *maps.shape[:3], len(SHARES)))
    for at in np.ndindex(*maps.shape[:3]):
        mass = np.abs(maps[at].astype(np.float64)).sum(axis=0)
        highest = torch.zeros(side * side, dtype=torch.bool)
        highest[order(mass)[: max(1, round(table.drop * mass.size))]] = True
        falls[at][0] = answer(at[0], highest.view(side, side))
        cells = order(slow_patches(maps[at], table.grid))
        taken = max(1, round(table.drop * table.grid**2))
        falls[at][1] = answer(at[0], pixels_of(cells[:taken], table.grid, side))
        for step, share in enumerate(SHARES):
            count = round(share * table.grid**2)
            for kind, away in enumerate((cells[:count], cells[count:])):
                curves[(kind, *at, step)] = np.exp(answer(at[0], pixels_of(away, table.grid, side))[1])
    return falls, curves


def close(found, wanted, rtol=1e-5):
    """Compare numbers with those of the same kind: rounding is of the size of the largest."""
    wanted = np.asarray(wanted)
    scale = np.nanmax(np.abs(wanted)) if np.isfinite(wanted).any() else 0.0
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * scale)


ALL = Attributions(
    methods=("integrated_gradients", "saliency", "input_x_gradient"),
    steps=6,
    grid=4,
    controlled=("*/without k2/0",),
    controls=2,
    curves=True,
    reduced=True,
    full=1,
)
