"""Random numbers that belong to a sample: the same whatever the order, the subset, or what was drawn before."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def keys(names: Iterable[str]) -> Keys:
    """Return one 64-bit key per name (a sample id, or a relative path)."""
    digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def bits(keys: Keys, *words: int | str) -> Keys:
    """Return 64 random bits per key, a pure function of the key and the words (seed, epoch, purpose).

    Two rounds of the splitmix64 finaliser (Steele et al. 2014) over the key, offset by a hash of the words.
    """
    salt = np.uint64(int.from_bytes(blake2b(repr(words).encode(), digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        z = keys + salt
        for _ in range(2):
            z = z + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
    return z


def uniform(keys: Keys, *words: int | str) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) per key, a pure function of the key and the words."""
    return (bits(keys, *words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order(keys: Keys, *words: int | str) -> npt.NDArray[np.int64]:
    """Return a shuffle of ``range(len(keys))`` in which each key's rank depends on its own draw."""
    return np.argsort(bits(keys, *words), kind="stable").astype(np.int64)


def seed(*words: int | str) -> int:
    """Return a 63-bit seed that is a pure function of the words."""
    return int.from_bytes(blake2b(repr(words).encode(), digest_size=8).digest(), "little") >> 1
