"""Pools, images and the long way: the golden one of two units, random small ones, contributions as whole arrays."""

import numpy as np

from neurolens.pairs import Pool

GOLDEN_PATCHES = np.array([[2.0, 3.0], [0.0, 1.0], [4.0, 5.0], [4.0, 5.0]])


def golden_pool():
    """Two units, two heads of one dim, one patch."""
    return Pool(
        W_q=np.zeros((2, 2)),
        b_q=np.array([0.0, np.log(3.0)]),
        W_k=np.array([[1.0, 0.0], [1.0, 0.0]]),
        b_k=np.array([5.0, -7.0]),
        W_v=np.array([[1.0, 2.0], [3.0, 0.0]]),
        b_v=np.array([1.0, -2.0]),
        W_o=np.array([[1.0, 2.0], [0.0, 1.0]]),
        b_o=np.array([4.0, 8.0]),
        positions=np.array([[0.0, 0.0], [1.0, -1.0]]),
        heads=2,
    )


def golden_maps(images=slice(None)):
    """The maps of four images, the last two alike."""
    return GOLDEN_PATCHES[images].reshape(-1, 2, 1, 1)


def random_pool(units=8, heads=2, head_dim=3, features=5, grid=(2, 3), seed=0, dtype=np.float64, class_token=False):
    """A pool of random matrices; attention is far from uniform."""
    rng = np.random.default_rng(seed)
    width = heads * head_dim

    def drawn(*shape):
        return rng.normal(size=shape).astype(dtype)

    return Pool(
        W_q=drawn(width, units) / units**0.5,
        b_q=drawn(width),
        W_k=drawn(width, units) / units**0.5,
        b_k=drawn(width),
        W_v=drawn(width, units),
        b_v=drawn(width),
        W_o=drawn(features, width),
        b_o=drawn(features),
        positions=drawn(grid[0] * grid[1] + 1, units),
        heads=heads,
        grid=grid,
        class_token=drawn(units) if class_token else None,
    )


def random_maps(pool, images=7, seed=1):
    """Non-negative maps, some of them 0, as after a ReLU."""
    rng = np.random.default_rng(seed)
    drawn = np.maximum(rng.normal(size=(images, pool.units, *pool.grid)) + 0.3, 0)
    return drawn.astype(pool.dtype)


def long_way(pool, maps):
    """Return the contributions r (image, head, unit, feature), token by token from the definition."""
    units, heads, dim = pool.units, pool.heads, pool.head_dim
    out = np.zeros((len(maps), heads, units, pool.features))
    for i, image in enumerate(maps):
        z = image.reshape(units, -1).T.astype(np.float64)
        first = z.mean(axis=0) if pool.class_token is None else pool.class_token
        x = np.vstack([first, z]) + pool.positions
        for h in range(heads):
            rows = slice(h * dim, (h + 1) * dim)
            query = pool.W_q[rows] @ x[0] + pool.b_q[rows]
            logits = np.array([query @ (pool.W_k[rows] @ token + pool.b_k[rows]) for token in x]) / np.sqrt(dim)
            a = np.exp(logits - logits.max())
            a /= a.sum()
            for n in range(units):
                for m, token in enumerate(x):
                    out[i, h, n] += a[m] * token[n] * (pool.W_o[:, rows] @ pool.W_v[rows, n])
                out[i, h, n] += pool.W_o[:, rows] @ pool.b_v[rows] / units + pool.b_o / (units * heads)
    return out
