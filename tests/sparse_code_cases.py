"""Random dictionaries and signals."""

import numpy as np


def problem(seed, signals=5, phrases=40, features=12, dtype=np.float64):
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(features, features)) + np.eye(features)
    dictionary = random.normal(size=(phrases, features)) @ mixed + random.normal(size=features)
    return random.normal(size=(signals, features)).astype(dtype), dictionary.astype(dtype)
