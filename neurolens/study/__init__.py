"""Study: the one configuration file. Every table and field is declared, documented and checked here."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from neurolens.errors import nearest
from neurolens.settings import read_settings
from neurolens.study.analyses import Activations, ConceptFiles, Concepts, Effects, Samples, Units
from neurolens.study.attributions import Attributions, Clusters
from neurolens.study.inputs import Data, Exposure, ImageNet, LabelNoise, Selection, Text, Train, Validation
from neurolens.study.pairs import Codes, Pairs, PhraseSet, Pools, Texts
from neurolens.study.tables import (
    FACTORY,
    OPEN_CLIP,
    TRANSFORMERS,
    CheckpointFile,
    Checkpoints,
    Compute,
    Model,
    Preprocessing,
    StoreTable,
    Table,
    Transformers,
    pattern_fields,
)

__all__ = [
    "FACTORY",
    "OPEN_CLIP",
    "TRANSFORMERS",
    "Activations",
    "Attributions",
    "CheckpointFile",
    "Checkpoints",
    "Clusters",
    "Codes",
    "Compute",
    "ConceptFiles",
    "Concepts",
    "Data",
    "Effects",
    "Exposure",
    "ImageNet",
    "LabelNoise",
    "Model",
    "Pairs",
    "PhraseSet",
    "Pools",
    "Preprocessing",
    "Samples",
    "Selection",
    "StoreTable",
    "Study",
    "Table",
    "Text",
    "Texts",
    "Train",
    "Transformers",
    "Units",
    "Validation",
    "load_study",
    "pattern_fields",
]


class Study(Table):
    """A whole study: one file, one run, one store; or a run and a store for each of its seeds."""

    name: str = Field("run", min_length=1, description="Name of the run.")
    seeds: tuple[NonNegativeInt, ...] = Field(
        (),
        description="One run per seed, e.g. [0, 1, 2], in the place of train.seed: named NAME-seed0, with checkpoints "
        "in checkpoints.folder/seed-0 and a store of its own, store-seed-0.icechunk.",
    )
    model: Model = Field(default_factory=Model)
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    data: Data = Field(default_factory=Data)
    train: Train | None = Field(None)
    store: StoreTable = Field(default_factory=StoreTable)
    compute: Compute = Field(default_factory=Compute)
    samples: Samples | None = Field(None)
    units: Units | None = Field(None)
    activations: Activations | None = Field(None)
    concepts: Concepts | None = Field(None)
    effects: Effects | None = Field(None)
    clusters: Clusters | None = Field(None)
    attributions: Attributions | None = Field(None)
    texts: Texts | None = Field(None)
    pools: Pools | None = Field(None)
    pairs: Pairs | None = Field(None)
    codes: Codes | None = Field(None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        exposure = self.data.exposure
        if exposure is not None:
            named = [c for classes in (exposure.schedule or {}).values() for c in classes]
            named += exposure.order if isinstance(exposure.order, tuple) else ()
            outside = sorted({c for c in named if not 0 <= c < self.model.classes})
            if outside:
                raise ValueError(
                    f"data.exposure names classes {outside}, and the network has classes 0 to "
                    f"{self.model.classes - 1}; correct them or model.classes"
                )
        self._check_seeds()
        if self.effects is not None and self.concepts is None:
            raise ValueError("[effects] are of units whose concepts died, and there is no [concepts] table; add one")
        if self.attributions is not None and self.clusters is None:
            raise ValueError("[attributions] are of clusters of units, and there is no [clusters] table; add one")
        self._check_pairs()
        self._check_logits()
        if self.effects is not None and "data" not in self.model_fields_set and self.model.name != "digits_convnet":
            raise ValueError(
                f"[effects] are measured on the samples of [data], and there is no such table; name those that "
                f"{self.model.name} was trained on, e.g. source = 'folder' and root"
            )
        if self.train is not None:
            self._check_written_names(self.train)
        return self

    def _check_pairs(self) -> None:
        if self.pairs is not None and self.pools is None:
            raise ValueError("[pairs] are of an attention pool, and there is no [pools] table; add one")
        if self.codes is None:
            return
        if self.pools is None or self.texts is None:
            raise ValueError("[codes] tell pairs of a pool in phrases; add a [pools] and a [texts] table")
        if self.codes.words not in self.texts.sets:
            raise ValueError(
                f"codes.words is {self.codes.words!r}, and [texts.sets] has no such set; "
                f"{nearest(self.codes.words, self.texts.sets)}"
            )
        if self.codes.percentile is not None and not self.pools.totals:
            raise ValueError("codes.percentile is of the norms of pairs over images; set pools.totals = true")

    def _check_logits(self) -> None:
        """A network of open_clip puts embeddings out, which would pass for logits."""
        names = ("train", "samples", "effects", "attributions") if self.model.name.startswith(OPEN_CLIP) else ()
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"[{name}] needs a network that tells classes, and {self.model.name} gives embeddings; drop the "
                    "table: [units], [activations], [texts], [pools], [pairs] and [codes] need no logits"
                )

    def _check_seeds(self) -> None:
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds lists {twice[0]} more than once; each is a run of its own, so name it once")
        for name in ("files", "revisions") if self.seeds else ():
            if getattr(self.checkpoints, name):
                raise ValueError(
                    f"seeds read checkpoints from a folder each, and checkpoints.{name} names those of one run; drop "
                    "seeds and write a study per run, or name the folder that holds seed-0, seed-1, …"
                )

    def _check_written_names(self, train: Train) -> None:
        """Training writes checkpoints under the pattern, so each must get a name of its own."""
        table = self.checkpoints
        if table.files:
            raise ValueError(
                "[train] writes checkpoints by checkpoints.pattern, and checkpoints.files lists others; drop one"
            )
        names = pattern_fields(table.pattern)
        if train.save_every_steps is not None and "step" not in names:
            raise ValueError(
                f"train.save_every_steps needs {{step}} in checkpoints.pattern, which is {table.pattern!r}; "
                f"write e.g. 'epoch_{{epoch}}_iter_{{step}}.pt'"
            )
        unset = [name for name in names if name not in ("epoch", "step", *table.fields)]
        if unset:
            raise ValueError(
                f"[train] needs a value for {unset} of checkpoints.pattern {table.pattern!r}; "
                f"add checkpoints.fields = {{ {unset[0]} = … }}"
            )
        try:
            table.pattern.format(**{**table.fields, "epoch": 0, "step": 0})
        except ValueError as error:
            raise ValueError(
                f"checkpoints.pattern {table.pattern!r} cannot be written with fields {table.fields}: {error}; "
                "correct the format after the colon, or the field's value"
            ) from None


def load_study(path: str | Path, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read a study file.

    Parameters
    ----------
    path
        The TOML file. Relative paths in it are relative to it, and come back absolute.
    profile
        Name of a ``[profiles.<name>]`` table of the file, laid over the rest table by table.
    overrides
        ``table.key=value`` with TOML values, laid over both; bare words are strings, and nothing after ``=`` removes
        the key.

    Raises
    ------
    StudyError
        If the file is missing or is not TOML, or if a key, value, profile or override is wrong. Every problem is
        listed with its key and its mend.
    """
    study = read_settings(Study, path, profile=profile, overrides=overrides)
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    store, model = study.store, study.model
    if "://" not in store.url:
        store = store.model_copy(update={"url": os.path.abspath(os.path.join(folder, os.path.expanduser(store.url)))})
    factory = FACTORY.fullmatch(model.name)
    if factory is not None:
        file = os.path.abspath(os.path.join(folder, os.path.expanduser(factory["file"])))
        model = model.model_copy(update={"name": f"{file}:{factory['function']}"})
    if model.transformers is not None:
        model = model.model_copy(update={"transformers": _local(model.transformers, folder)})
    return study.model_copy(update={"store": store, "model": model})


def _local(table: Transformers, folder: str) -> Transformers:
    """Make source and tokenizer absolute where they name folders: beside the file, or by a path and no hub name."""
    found = {}
    for name in ("source", "tokenizer"):
        given = getattr(table, name)
        if given is None:
            continue
        path = os.path.abspath(os.path.join(folder, os.path.expanduser(given)))
        if os.path.isdir(path) or given.startswith((".", "~", os.sep)):
            found[name] = path
    return table.model_copy(update=found)
