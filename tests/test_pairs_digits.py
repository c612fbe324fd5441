"""A CLIP-ResNet in small, trained on digits and measured as a study does: what its pairs are good for, and what not."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pairs_study
import pytest
import torch
import xarray as xr
from PIL import Image

from neurolens import models
from neurolens.data.labelled_images import labelled_images
from neurolens.data.opening import study_samples
from neurolens.inference import bootstrap_counts, percentile_interval
from neurolens.pairs import (
    ablation_curve,
    association,
    association_by_group,
    at,
    class_pairs,
    confusion,
    curve_difference,
    directions,
    head_similarity,
    majority,
    pair_logits,
    pair_norms,
    phrase_set,
    phrase_share,
    pool_of,
    rank_curve,
    reconstruct,
    resampled,
    segment,
    segmentation_scores,
    unit_norms,
    value_logits,
    zero_shot,
)
from neurolens.study import load_study
from neurolens.study_files import TEMPLATES
from neurolens.training import train

SHARES = (0.5, 0.2, 0.1, 0.05)
TRAINED = ("train.epochs=4", "train.save_every_epochs=4", "train.save_initial=false")
TESTED = (*TRAINED, "data.split=test", "pools.totals=false", "pairs.split=false")
PAIRS = 139
"""Of each class for segmentation: 13.6 % of 1024, the reference's share of its pairs."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Train on 1437 digits, and measure the last checkpoint on the 360 others, through the store."""
    path = tmp_path_factory.mktemp("digits") / "study.toml"
    path.write_text((TEMPLATES / "digits_clip.toml").read_text())
    train(load_study(path, overrides=TRAINED), progress=False)
    for cube in ("texts", "pools", "pairs"):
        assert {result.outcome for result in pairs_study.run(path, cube, *TESTED)} == {"computed"}
    study = load_study(path, overrides=TESTED)
    data = at(study.store.url).drop_vars("attention").compute()
    module = models.build(study.model).module.eval()
    state = torch.load(path.parent / "checkpoints" / "epoch_4.pt", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    samples = study_samples(study)
    assert samples.ids.tolist() == data["sample"].to_numpy().tolist()
    return SimpleNamespace(
        folder=path.parent,
        data=data,
        scalar=data["scalar"],
        texts=phrase_set(data, "classes"),
        labels=data["label"].to_numpy(),
        module=module,
        images=np.asarray(samples.images.load(range(len(samples))))[..., 0],
    )


def accuracy(embedding, digits):
    return float(zero_shot(embedding, digits.texts, digits.labels)["accuracy"])


def test_digits_clip__its_pairs_add_up_to_embeddings_that_tell_digits(digits):
    assert digits.scalar.shape == (360, 128, 8)
    assert float(digits.data["completeness"].max()) < 1e-5
    assert accuracy(digits.data["embedding"], digits) > 0.95


def test_directions__one_of_each_pair_says_all_and_hardly_a_sign_is_not_that_of_u(digits):
    own = directions(digits.data)["direction"]
    rebuilt = reconstruct(digits.scalar, digits.data, own)
    np.testing.assert_allclose(rebuilt, digits.data["embedding"], atol=1e-4)
    signs = majority(digits.scalar, digits.data)
    assert 0 < int((signs <= 0).sum()) < 0.1 * signs.size


def test_rank_curve__more_components_of_units_tell_no_fewer_digits_and_all_eight_as_many_as_the_network(digits):
    curve = rank_curve(digits.scalar, digits.data, digits.texts, digits.labels, ranks=(1, 2, 4, 8))
    found = curve["accuracy"].to_numpy()
    assert (np.diff(found) >= -0.01).all()
    assert found[3] == float(curve["whole"]) == accuracy(digits.data["embedding"], digits)
    assert found[0] > 0.9
    assert (np.diff(curve["share"]) > 0).all()
    assert float(curve["share"][3]) == pytest.approx(1, abs=1e-6)


def test_ablation_curve__kept_pairs_tell_more_digits_than_as_large_a_share_of_units_or_of_random_pairs(digits):
    options = {"shares": SHARES, "baselines": 3, "bootstrap": 200}
    given = (digits.scalar, digits.data, digits.texts, digits.labels)
    pairs = ablation_curve(*given, score=pair_norms(digits.scalar, digits.data), **options)
    units = ablation_curve(*given, score=unit_norms(digits.scalar, digits.data), **options)
    gain = curve_difference(pairs, units, bootstrap=200)
    assert pairs["kept"].to_numpy().tolist() == [512, 205, 103, 52]
    assert units["kept"].to_numpy().tolist() == [64, 26, 13, 7]
    assert (gain["difference"] > -0.01).all()
    assert float(gain["difference"].mean()) > 0.05
    assert (gain["low"].sel(share=[0.1, 0.05]) > 0).all()
    assert (pairs["accuracy"] > pairs["random"].mean("draw") - 0.005).all()
    assert (pairs["low"].sel(share=[0.1, 0.05]) > pairs["random_high"].sel(share=[0.1, 0.05])).all()
    assert (np.diff(pairs["accuracy"]) <= 0.01).all()


def write_scenes(root, digits, *, count, side, seed=0):
    """Write scenes of side × side digits in the folder layout: a label for the ink of each, 255 for the rest."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for scene in range(count):
        chosen = rng.choice(len(digits.images), (side, side), replace=False)
        pixels = np.block([[digits.images[i] for i in row] for row in chosen])
        cells = np.kron(digits.labels[chosen], np.ones((8, 8), np.int64))
        Image.fromarray(pixels).save(root / "images" / f"{scene}.png")
        labels = np.where(pixels > 64, cells, 255).astype(np.uint8)
        Image.fromarray(labels).save(root / "labels" / f"{scene}.png")
    return labelled_images(root)


def ways_to_segment(digits, grid):
    """Functions from images to the logits of their patches: pairs, the paper's baselines, and pairs of no class."""
    pool, texts = resampled(pool_of(digits.module), grid), digits.texts.to_numpy()
    trunk = torch.nn.Sequential(*list(digits.module.children())[:-1])  # all but the attention pool
    chosen = class_pairs(digits.data, texts, k=PAIRS)
    drawn = np.random.default_rng(0).permuted(chosen.to_numpy().reshape(10, -1), axis=1).reshape(chosen.shape)

    def maps_of(images):
        with torch.no_grad():
            return trunk(torch.from_numpy(np.asarray(images, np.float32))).numpy()

    def by_pairs(images, pairs):
        maps = maps_of(images)
        similarity = head_similarity(pool, maps, texts, repair=False)
        return pair_logits(similarity, maps, pairs, repair=False)

    return {
        "pairs": lambda images: by_pairs(images, chosen),
        "MaskCLIP": lambda images: value_logits(pool, maps_of(images), texts),
        "self-self": lambda images: value_logits(pool, maps_of(images), texts, attention=("q", "k")),
        "random pairs": lambda images: by_pairs(images, chosen.copy(data=drawn)),
    }


def comparison(counts):
    """Return the mIoU of each way, and that of pairs less it with a bootstrap interval over scenes."""
    scores = {name: float(segmentation_scores(sum(found))["miou"]) for name, found in counts.items()}
    draws = np.stack(list(bootstrap_counts(len(counts["pairs"]), 300, 0)))
    drawn = {
        name: segmentation_scores(
            xr.DataArray(np.tensordot(draws, np.stack(found), 1), dims=("draw", "truth", "prediction"))
        )["miou"]
        for name, found in counts.items()
    }
    report = {}
    for name, score in scores.items():
        low, high = percentile_interval(drawn["pairs"] - drawn[name], 0.95)
        report[name] = {
            "miou": score,
            "pairs_less_it": scores["pairs"] - score,
            "low": float(low),
            "high": float(high),
        }
    return report


def by_hand(prediction, truth):
    """Return the mean over classes of the pixels in common over the pixels of either, counted one by one."""
    pixels = [(int(p), int(t)) for p, t in zip(prediction.ravel(), truth.ravel(), strict=True) if t != 255]
    each = []
    for one in range(10):
        common = sum(p == one and t == one for p, t in pixels)
        either = sum(one in (p, t) for p, t in pixels)
        if either:
            each.append(common / either)
    return sum(each) / len(each)


def test_segment__scenes_of_digits_by_pairs_and_by_how_much_they_differ_from_the_baselines(digits, tmp_path):
    scenes = write_scenes(tmp_path, digits, count=16, side=3)
    ways = ways_to_segment(digits, (12, 12))
    counts = {name: [] for name in ways}
    for i in range(len(scenes)):
        image, truth = scenes.image(i)[None, :, :, 0] / 255, scenes.label(i)
        for name, logits_of in ways.items():
            found = segment(image, logits_of, crop=24, stride=24, short=None)["label"].to_numpy()
            counts[name].append(confusion(found, truth, classes=10))
            if i == 0:
                own = segmentation_scores(counts[name][0])["miou"]
                assert float(own) == pytest.approx(by_hand(found, truth))
    report = comparison(counts)
    assert report["pairs"]["miou"] > 0.2  # chance finds a tenth of the pixels
    for baseline in ("self-self", "random pairs"):
        assert report[baseline]["low"] > 0, report
    # MaskCLIP is better here: by 0.027 (0.008 to 0.041) over 24 scenes.
    behind = report["MaskCLIP"]
    assert behind["low"] <= behind["pairs_less_it"] <= behind["high"]
    assert -0.1 < behind["pairs_less_it"] < 0.05, report


def years(labels, digit, seed):
    """Return years of images: those of one digit are the more frequent the later, the others as frequent in each."""
    rng = np.random.default_rng(seed)
    late = np.arange(10) ** 4
    drawn = np.where(
        labels == digit,
        rng.choice(10, len(labels), p=late / late.sum()),
        rng.integers(0, 10, len(labels)),
    )
    return xr.DataArray(2000 + drawn, dims="sample")


@pytest.fixture(scope="module")
def shares(digits):
    """Shares of the norm in the pairs of the words of digits, and of 40 directions that mean nothing."""
    drawn = np.random.default_rng(0).normal(size=(40, digits.texts.sizes["feature"]))
    random = xr.DataArray(drawn, dims=("phrase", "feature"))
    return phrase_share(digits.scalar, digits.data, digits.texts), phrase_share(digits.scalar, digits.data, random)


@pytest.mark.parametrize("seed", range(3))
def test_phrase_share__of_a_digit_that_becomes_frequent_grows_and_of_random_phrases_does_not(digits, shares, seed):
    ours, random = shares
    digit, year = 2, years(digits.labels, 2, seed)
    shown = xr.DataArray(digits.labels == digit, dims="sample")

    known = association(ours.sel(phrase=str(digit)), shown, permutations=500, bootstrap=0)
    assert float(known["r"]) > 0.6  # point-biserial: the share tells which images show the digit
    found = association(ours.sel(phrase=str(digit)), year, permutations=500, bootstrap=200)
    assert float(found["p"]) < 0.01
    assert 0 < float(found["low"]) < float(found["r"])
    by_year = association_by_group(ours.sel(phrase=str(digit)), shown, year, permutations=500)
    assert float(by_year["correlation"]) > 0.8
    assert float(by_year["p"]) < 0.01

    others = association(random, year, permutations=500, bootstrap=0)
    assert float(others["p"].median()) > 0.05
    assert float(np.abs(others["r"]).quantile(0.95)) < float(found["r"])


def test_association__nothing_is_left_of_the_shift_among_images_of_one_digit_or_of_years_at_random(digits, shares):
    ours, p = shares[0].sel(phrase="2"), {"strata": [], "shuffled": []}
    label = xr.DataArray(digits.labels, dims="sample")
    for seed in range(5):
        year = years(digits.labels, 2, seed)
        p["strata"].append(float(association(ours, year, strata=label, permutations=300, bootstrap=0)["p"]))
        shuffled = year.copy(data=np.random.default_rng(seed).permutation(year.to_numpy()))
        p["shuffled"].append(float(association(ours, shuffled, permutations=300, bootstrap=0)["p"]))
    assert np.median(p["strata"]) > 0.05
    assert np.median(p["shuffled"]) > 0.05


def test_snippets__of_the_page_on_pairs_run(digits, monkeypatch):
    monkeypatch.chdir(digits.folder)
    study = digits.folder / "study.toml"
    monkeypatch.setattr("neurolens.study.load_study", lambda _: load_study(study, overrides=TESTED))
    page = Path(__file__).parent.parent / "docs" / "how-to" / "pairs.md"
    names: dict[str, object] = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(snippet, str(page), "exec"), names)
    assert float(names["split"]["logit"].isnull().sum()) == 0
    told = zero_shot(digits.data["embedding"], digits.texts, digits.labels)["predicted"]
    np.testing.assert_array_equal(names["split"]["logit"].argmax("phrase"), told[:4])
    assert names["heat"].sizes == {"sample": 4, "phrase": 2, "y": 4, "x": 4}
    assert names["pixels"].shape == (16, 16)
