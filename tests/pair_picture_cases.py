"""One checkpoint's pairs with everything that pictures show: classes that images are of, phrases, years, images."""

from dataclasses import replace

import numpy as np
import xarray as xr
from pairs_cases import random_pool

from neurolens.pairs import ScalarTotals, factors, scalars

CLASSES = ("a cat", "a dog", "a fish", "a bird")
WORDS = ("fur", "fins", "feathers", "whiskers", "water", "grass", "sky", "a collar")


def pair_dataset(images=80, units=24, heads=4, features=12, seed=0, totals=20, noise=0.6):
    """Return scalars, factors, totals and phrases as `neurolens.pairs.at` gives them; labels can be told apart."""
    rng = np.random.default_rng(seed)
    pool = random_pool(
        units=units, heads=heads, head_dim=3, features=features, grid=(3, 3), seed=seed, dtype=np.float32
    )
    weights = pool.W_v.copy()
    weights[3:6, 5] = 0  # unit 5 writes nothing through head 1
    pool = replace(pool, W_v=weights)
    labels = np.arange(images) % len(CLASSES)
    loud = rng.random((len(CLASSES), units)) ** 3  # few units say much of each class
    drawn = np.abs(rng.normal(size=(images, units, 3, 3))) * noise
    maps = (drawn + 2 * loud[labels][:, :, None, None] * rng.random((images, 1, 3, 3))).astype(np.float32)
    maps[:, 3] = 0  # a unit that is silent
    measured = scalars(pool, maps)
    fixed = factors(pool)
    kept = ScalarTotals(ranks=totals)
    kept.add(measured["scalar"])
    embedding = measured["embedding"].to_numpy()
    means = np.stack([embedding[labels == c].mean(axis=0) for c in range(len(CLASSES))])
    rows = np.concatenate([means - means.mean(axis=0), rng.normal(size=(len(WORDS), features))])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sets = ["classes"] * len(CLASSES) + ["words"] * len(WORDS)
    words = [*CLASSES, *WORDS]
    ids = [f"s{i:03d}" for i in range(images)]
    out = xr.merge([measured, fixed, kept.dataset()], combine_attrs="override").assign(
        text=(("phrase", "feature"), rows.astype(np.float32))
    )
    out = out.assign_coords(
        sample=ids,
        unit=np.arange(units),
        head=np.arange(heads),
        label=("sample", labels),
        phrase=[f"{one}/{word}" for one, word in zip(sets, words)],
        set=("phrase", sets),
        words=("phrase", words),
        year=("sample", 2000 + np.arange(images) // 10),
    ).assign_coords({"class": list(CLASSES), "epoch": 3})
    out.attrs |= {"token": "mean"}
    return out, maps


def pictures_by_id(size=24):
    """Return a function from ids to small coloured images, another for each."""

    def load(ids):
        found = []
        for name in ids:
            rng = np.random.default_rng(int(str(name)[1:]))
            image = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((size // 4, size // 4, 1)))
            found.append(image.astype(np.uint8))
        return found

    return load
