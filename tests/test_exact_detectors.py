"""Networks built by hand on generated concepts: detectors that are exact, and a history that is scripted in weights."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from units_cases import Net

from neurolens.data import shown
from neurolens.data.concepts import open_concepts
from neurolens.data.shape_pictures import COLORS
from neurolens.data.shapes import make_concepts
from neurolens.dissection import best_concept, detectors, image_draws, iou
from neurolens.dissection.measure import dissect
from neurolens.mortality import concept_events, event_probability, extinctions, label_drift, migrations
from neurolens.study import Preprocessing

PLAIN = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
SHADES, NOISE = (1.0, 0.88, 0.78), 6
SCRIPT = {
    0: {"red-c": "..######........"},  # born, and died
    1: {"square": "####....####...."},  # died, reborn, died again
    2: {"dotted": "########........"},  # hands its concept over to unit 3
    3: {"dotted": ".........#######"},
    4: {"rim": "#######.........", "core": ".......#########"},  # drifts without a pause
    5: {"beach-s": "####.#####.#####"},  # dips that are no death
    6: {"red-c": "...........#####"},  # a concept comes back in another unit
    7: {"square": "..............##"},  # too young to tell
}
EVENTS = [
    (0, "red-c", 20, 80, "death", False),
    (1, "square", 0, 40, "death", False),
    (1, "square", 80, 120, "death", True),
    (2, "dotted", 0, 80, "death", False),
    (3, "dotted", 90, None, "alive", False),
    (4, "core", 70, None, "alive", False),
    (4, "rim", 0, 70, "death", False),
    (5, "beach-s", 0, None, "alive", False),
    (6, "red-c", 110, None, "alive", False),
    (7, "square", 140, None, "alive", False),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    concepts = open_concepts(make_concepts(folder / "shapes", n=60, size=48, seed=2))
    return concepts, concepts.packed(cache=folder / "cache")


class Coloured(nn.Module):
    """A unit per colour, exact: 1 where a cell has it in any shade, 0 elsewhere; and a unit that is dead."""

    def __init__(self, names):
        super().__init__()
        boxes = [(np.array(COLORS[name]) * shade, u) for u, name in enumerate(names) for shade in SHADES]
        self.outside, self.inside = nn.Conv2d(3, 6 * len(boxes), 1), nn.Conv2d(6 * len(boxes), len(boxes), 1)
        self.either = nn.Conv2d(len(boxes), len(names) + 1, 1)
        self.act = nn.ReLU()
        for part in (self.outside, self.inside, self.either):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        with torch.no_grad():
            for b, (color, unit) in enumerate(boxes):
                low, high = np.clip(np.rint(color) - NOISE, 0, 255) - 0.5, np.clip(np.rint(color) + NOISE, 0, 255) + 0.5
                for c in range(3):  # how far a pixel is below and above the box
                    self.outside.weight[6 * b + c, c], self.outside.bias[6 * b + c] = -255, low[c]
                    self.outside.weight[6 * b + 3 + c, c], self.outside.bias[6 * b + 3 + c] = 255, -high[c]
                self.inside.weight[b, 6 * b : 6 * b + 6], self.inside.bias[b] = -4, 1
                self.either.weight[unit, b] = 1
            self.either.bias[-1] = -1

    def forward(self, x):
        hidden = torch.relu(self.inside(torch.relu(self.outside(x))))
        return self.act(nn.functional.avg_pool2d(self.either(hidden), 2))


class LookedUp(nn.Module):
    """Maps by image: units that are what they are told to be, (image, unit, h, w)."""

    def __init__(self, pixels, maps):
        super().__init__()
        self.register_buffer("pixels", pixels.flatten(1))
        self.register_buffer("maps", torch.as_tensor(maps))
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.maps[torch.cdist(x.flatten(1), self.pixels).argmin(dim=1)])


def pixels_of(concepts):
    net = Net(nn.Identity(), PLAIN)
    return next(iter(shown(concepts.samples(), net, batch_size=len(concepts)))).args[0]


def plane(masks, image, concept):
    present = masks.present(image).concepts.tolist()
    if concept not in present:
        return np.zeros(masks.label_size, np.float32)
    return masks.planes(image)[present.index(concept)].astype(np.float32)


def cube(concepts, rows, stamps=(0,)):
    dims = {
        "threshold": ("unit",),
        "intersection": ("block", "unit", "concept"),
        "unit_area": ("block", "unit", "category"),
        "unit_area_lite": ("block", "unit", "category"),
        "concept_area": ("block", "concept"),
    }
    units = len(rows[0]["threshold"])
    data = {name: (("epoch", *of), np.stack([row[name] for row in rows]).astype(float)) for name, of in dims.items()}
    coords = {
        "epoch": list(stamps),
        "unit": np.arange(units),
        "layer": ("unit", ["act"] * units),
        "concept": list(concepts.concepts),
        "label": ("concept", concepts.labels),
        "concept_category": ("concept", list(concepts.concept_category)),
        "category": list(concepts.categories),
    }
    return xr.Dataset(data, coords)


def test_dissect__of_exact_colour_detectors_has_an_iou_of_one_and_of_a_dead_unit_none(shapes):
    concepts, masks = shapes
    found = dissect(Net(Coloured(list(COLORS)), PLAIN), concepts.samples(), masks, layers=["act"], quantile=0.6)
    ds = cube(concepts, [found])
    for reading in ("paper", "lite"):
        score = iou(ds, reading=reading).isel(epoch=0)
        for unit, name in enumerate(COLORS):
            assert abs(score.sel(unit=unit, concept=f"{name}-c").item() - 1) < 1e-9
            assert (score.sel(unit=unit).drop_sel(concept=f"{name}-c") < 0.7).all()
        assert score.isel(unit=-1).isnull().all()  # dead: absent, and not 0
        best = best_concept(ds, reading=reading).isel(epoch=0)
        assert best["label"].data.tolist() == [*(f"{name}-c" for name in COLORS), ""]
        assert np.isnan(best["score"][-1])
        count = detectors(ds, tau=0.99, reading=reading)
        assert count["n_unique"].sel(category="color").item() == count["total_detectors"].item() == len(COLORS)


def test_dissect__of_looked_up_detectors_has_an_iou_of_one_for_every_kind_of_concept(shapes):
    concepts, masks = shapes
    names = ["square", "corner", "rim", "dotted", "beach-s", "green-c"]
    numbers = [concepts.concepts.index(name) for name in names]
    maps = np.stack([[plane(masks, i, c) for c in numbers] for i in range(len(masks))])
    constant, dead = np.ones_like(maps[:, :1]), -np.ones_like(maps[:, :1])
    module = LookedUp(pixels_of(concepts), np.concatenate([maps, constant, dead], axis=1))
    found = dissect(
        Net(module, PLAIN), concepts.samples(), masks, layers=["act"], quantile=0.5, top=3, rotations=3, batch_size=7
    )
    ds = cube(concepts, [found])
    whole = np.moveaxis(maps, 1, 0).reshape(len(names), -1)
    planes = np.stack([[plane(masks, i, c) for c in range(len(concepts.concepts))] for i in range(len(masks))])
    label = np.moveaxis(planes, 1, 0).reshape(planes.shape[1], -1)
    common = whole @ label.T
    for unit, name in enumerate(names):
        score = iou(ds).isel(epoch=0, unit=unit)
        assert abs(score.sel(concept=name).item() - 1) < 1e-9
        color = np.array(concepts.concept_category) == "color"  # every image shows colours, so every mask counts
        expected = common[unit] / (whole[unit].sum() + label.sum(axis=1) - common[unit])
        np.testing.assert_allclose(score.data[color], expected[color], rtol=1e-6)
    assert best_concept(ds)["label"].data[0].tolist() == [*names, "", ""]
    assert iou(ds).isel(unit=[6, 7]).isnull().all()  # nothing exceeds what is everywhere the same
    assert (found["top_value"][:6] == 1).all()
    first = [np.flatnonzero(maps[:, unit].any(axis=(1, 2)))[:3].tolist() for unit in range(6)]
    assert found["top_sample"][:6].tolist() == first
    assert found["rotated_score"].max() < 0.9


@pytest.fixture(scope="module")
def history(shapes):
    """A network at 16 checkpoints: each unit is exactly what its script says, or a corner of the picture."""
    concepts, masks = shapes
    names = sorted({name for script in SCRIPT.values() for name in script})
    planes = {
        name: np.stack([plane(masks, i, concepts.concepts.index(name)) for i in range(len(masks))]) for name in names
    }
    corner = np.zeros_like(planes["square"])
    corner[:, 0, 0] = 1
    pixels, rows = pixels_of(concepts), []
    for t in range(16):
        held = [[planes[name] for name, line in script.items() if line[t] == "#"] for script in SCRIPT.values()]
        maps = np.stack([one[0] if one else corner for one in held], axis=1)
        net = Net(LookedUp(pixels, maps), PLAIN)
        rows.append(dissect(net, concepts.samples(), masks, layers=["act"], quantile=0.6))
    return cube(concepts, rows, range(0, 160, 10))


@pytest.mark.parametrize("reading", ["paper", "lite"])
def test_concept_events__recover_a_history_scripted_in_weights(history, reading):
    found = concept_events(iou(history, reading=reading), k=2, tau=0.9)
    lines = found.sort_values(["unit", "concept", "birth"])
    got = [
        (row.unit, row.concept, row.birth, row.death if row.end == "death" else None, row.end, row.rebirth)
        for row in lines.itertuples()
    ]
    assert got == EVENTS
    np.testing.assert_allclose(iou(history, reading=reading).max(["unit", "concept"]), 1, rtol=0, atol=1e-9)


def test_migrations_and_drift__recover_a_history_scripted_in_weights(history):
    scores = iou(history)
    moved = migrations(scores, k=2, tau=0.9).set_index(["unit", "concept", "death"])
    assert {at: list(line) for at, line in moved["destinations"].items()} == {
        (0, "red-c", 80): [6],
        (1, "square", 40): [],
        (1, "square", 120): [7],
        (2, "dotted", 80): [3],
        (4, "rim", 70): [],
    }
    drift = label_drift(scores, tau=0.9)
    changed = [(int(drift["to_epoch"][t]), int(unit)) for t, unit in np.argwhere(drift["changed"].data)]
    assert changed == [(70, 4)]
    gone = extinctions(scores, k=2, tau=0.9).set_index(["concept", "life"])
    assert gone.loc[("rim", 0), "death"] == 70
    assert gone.loc[("red-c", 1), "gap"] == 3


def test_event_probability__of_exact_detectors_is_one(history):
    """Whichever images are drawn, a mask that is the label has an IoU of 1."""
    found = event_probability(iou(history), image_draws(history, n=10), k=2, tau=0.9)
    assert len(found) == len(EVENTS)
    assert (found["p_birth"] == 1).all()
    assert (found["p_death"].dropna() == 1).all()
