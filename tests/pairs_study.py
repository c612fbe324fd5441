"""A small study of pools and pairs on untrained networks of CLIP's kind: seconds to run."""

from pathlib import Path

import numpy as np
import torch
from conftest import STUDY, write_samples

from neurolens import models, rows
from neurolens.data import SampleSet, shown
from neurolens.models import Network
from neurolens.study import Model, load_study

UNITS, HEADS, FEATURES, TOKENS = 16, 4, 6, 17
TEXT = STUDY.replace("[samples]\n", "").replace(
    'name = "digits_convnet"', 'name = "digits_clip"\noptions = { units = 16, heads = 4, features = 6 }'
) + ("[pools]\nranks = 3\n[pairs]\nsplit = true\n")

FACTORY = '''"""CLIP's kind of network, and ways in which it may be another one."""

import torch
from neurolens.clip_networks import AttentionPool2d, DigitsClip


class Pool(AttentionPool2d):
    """Where `normalises` is set, as a checkpoint may, it brings its output to length 1."""

    def __init__(self, *sizes, **how):
        super().__init__(*sizes, **how)
        self.register_buffer("normalises", torch.tensor(0.0))

    def forward(self, x):
        out = super().forward(x)
        return torch.nn.functional.normalize(out, dim=1) if self.normalises else out


class Clip(DigitsClip):
    def __init__(self, after):
        super().__init__(units=16, heads=4, features=6)
        self.attnpool, self.after = Pool(16, 4, 6, grid=(4, 4)), after
        self.preprocessing = {"mean": (0.0,), "std": (1.0,)}

    def encode_image(self, x):
        out = super().encode_image(x)
        return {"": out, "length": torch.nn.functional.normalize(out, dim=1), "width": out[:, :3]}[self.after]


class Image(Clip):
    """Without a function for embeddings."""

    encode_image = None

    def forward(self, x):
        return Clip.encode_image(self, x)[:, :2] * 3


class Twice(Clip):
    def encode_image(self, x):
        return super().encode_image(x) + super().encode_image(x)


class Two(Clip):
    def __init__(self):
        super().__init__("")
        self.other = torch.nn.Sequential(AttentionPool2d(16, 4, 6, grid=(4, 4)))


def clip(classes, after=""):
    return Clip(after)


def image(classes):
    return Image("")


def twice(classes):
    return Twice("")


def two(classes):
    return Two()


def timm(classes):
    from timm.layers import AttentionPool2d

    network = Image("")
    network.attnpool = AttentionPool2d(16, feat_size=4, out_features=6, num_heads=4)
    torch.nn.init.normal_(network.attnpool.pos_embed)
    return network
'''


def write_study(home: Path, *, checkpoints: int = 2, samples: int = 24, text: str = TEXT, factory: str = "") -> Path:
    """Write a study with digits and untrained networks; ``factory`` is a function of `FACTORY`."""
    home.mkdir(parents=True, exist_ok=True)
    write_samples(home, np.arange(samples))
    if factory:
        (home / "networks.py").write_text(FACTORY)
        text = text.replace(
            '"digits_clip"\noptions = { units = 16, heads = 4, features = 6 }', f'"networks.py:{factory}"'
        )
    path = home / "study.toml"
    path.write_text(text)
    for epoch in range(checkpoints):
        write_checkpoint(path, epoch)
    return path


def write_checkpoint(path: Path, epoch: int, *, seed: int | None = None, **changed: float) -> Network:
    """Write an untrained network of the study as a checkpoint, tensors of some names filled with a number."""
    network = models.build(load_study(path).model, seed=epoch if seed is None else seed)
    state = network.module.state_dict()
    for name, value in changed.items():
        state[name.replace("__", ".")].fill_(value)
    file = path.parent / "checkpoints" / f"epoch_{epoch}.pt"
    file.parent.mkdir(exist_ok=True)
    torch.save(state, file)
    return network


def filled(path: Path, epoch: int) -> Network:
    """The network of a study with the weights of one of its checkpoints."""
    network = models.build(load_study(path).model)
    network.module.load_state_dict(torch.load(path.parent / "checkpoints" / f"epoch_{epoch}.pt"))
    return network


def tensor(samples: SampleSet) -> torch.Tensor:
    """Digits as the network takes them."""
    (batch,) = shown(samples, models.build(Model(name="digits_clip")), batch_size=len(samples))
    return batch.args[0]


def planned(path: Path, cube: str, *overrides: str) -> rows.Plan:
    """What is to be done of a cube."""
    study = load_study(path, overrides=overrides)
    return rows.plan(rows.gather(study, cube), rows.open_for_reading(study))


def run(path: Path, cube: str, *overrides: str) -> list[rows.Result]:
    """Bring one cube of a study up to date, as a flow does."""
    study = load_study(path, overrides=overrides)
    materials = rows.gather(study, cube)
    plan = rows.plan(materials, rows.open_for_reading(study))
    return rows.run_rows(materials, plan.todo, rows.open_for_writing(study)) if plan.todo else []
