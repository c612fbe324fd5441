"""Study: the one configuration file. Every table and field is declared, documented and checked here."""

import os
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from neurolens.errors import nearest
from neurolens.settings import read_settings

Fraction = Annotated[float, Field(gt=0, le=1)]
Every = Annotated[NonNegativeInt | None, AfterValidator(lambda every: every or None)]  # 0 is how TOML says never
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]

FACTORY = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")


class Table(BaseModel):
    """A table of the study file: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Preprocessing(Table):
    """What turns a decoded image into the network's input. It belongs to the model, and is recorded with every row."""

    resize: PositiveInt | None = Field(
        None, description="Shorter side in pixels after resizing; absent: the model's, or as it is where crop is given."
    )
    crop: PositiveInt | None = Field(
        None, description="Side of the centre crop in pixels; absent: the model's, or none where resize is given."
    )
    mean: tuple[float, ...] | None = Field(
        None, description="Per-channel mean of pixels in [0, 1]; absent: the model's."
    )
    std: tuple[PositiveFloat, ...] | None = Field(
        None, description="Per-channel standard deviation; absent: the model's."
    )

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}; give both the same number")
        return self


class Model(Table):
    """The network."""

    name: str = Field(
        "digits_convnet",
        description="digits_convnet, cifar_resnet18 (3x3 stem, `linear`/`shortcut`), cifar_resnet18_incremental "
        "(3x3 stem, biases, `fc`), any torchvision name, or `file.py:function`.",
    )
    classes: PositiveInt = Field(10, description="Number of classes.")
    options: dict[str, bool | int | float | str] = Field({}, description="Further keyword arguments of the factory.")
    preprocessing: Preprocessing = Field(default_factory=Preprocessing, description="Overrides of the preprocessing.")


class Checkpoints(Table):
    """Where a run's checkpoints are, and which of them to use."""

    folder: Path = Field(Path("checkpoints"), description="Folder that holds them.")
    pattern: str = Field(
        "epoch_{epoch}.pt",
        description="File name with fields: {epoch} and/or {step} are integers, any other {field} is matched as text.",
    )
    fields: dict[str, str | int | float] = Field({}, description="Required values of the pattern's other fields.")
    files: tuple["CheckpointFile", ...] = Field((), description="Explicit list; used instead of folder and pattern.")
    series: Literal["epoch", "step"] | None = Field(
        None, description="The series dimension; absent: epoch if every file has a distinct one, else step."
    )
    start: int | None = Field(None, description="First epoch (or step) used.")
    end: int | None = Field(None, description="Last epoch (or step) used, inclusive.")
    stride: PositiveInt | None = Field(None, description="Use epochs (or steps) start, start + stride, …")
    expect: tuple[int, int] | None = Field(None, description="Declared range, inclusive: gaps against it are reported.")
    expect_every: PositiveInt = Field(1, description="Spacing of the declared range.")
    state_key: str | None = Field(None, description="Key of the state dict inside the file; absent: found.")
    strip_prefixes: tuple[str, ...] = Field((), description="Prefixes removed from tensor names, e.g. 'module.'.")
    trust: bool = Field(False, description="Allow checkpoints that execute code when they are read (full pickles).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.start is not None and self.end is not None and self.start > self.end:
            raise ValueError(f"start {self.start} is after end {self.end}; swap them")
        if self.expect is not None and self.expect[0] > self.expect[1]:
            raise ValueError(f"expect {list(self.expect)} runs backwards; write the first, then the last")
        names = pattern_fields(self.pattern)
        for name in self.fields:
            if name not in names:
                raise ValueError(f"fields.{name} is not in pattern {self.pattern!r}; {nearest(name, names)}")
        if self.files:
            return self
        if not {"epoch", "step"} & set(names):
            raise ValueError(f"pattern {self.pattern!r} has neither {{epoch}} nor {{step}}; put one of them in")
        if self.series is not None and self.series not in names:
            raise ValueError(f"series is {self.series!r}, but pattern {self.pattern!r} has no {{{self.series}}}")
        return self


class CheckpointFile(Table):
    """One explicitly listed checkpoint."""

    path: Path = Field(description="The file.")
    epoch: int | None = Field(None, description="Its epoch.")
    step: int | None = Field(None, description="Its optimizer step.")

    @model_validator(mode="after")
    def _has_a_position(self) -> Self:
        if self.epoch is None and self.step is None:
            raise ValueError(f"{self.path} has neither epoch nor step; say which it is, e.g. epoch = 3")
        return self


class Selection(Table):
    """Which samples of the split are used."""

    classes: tuple[int | str, ...] | None = Field(None, description="Classes kept, by index or name.")
    ids: Path | None = Field(None, description="Text file with one sample id a line.")
    count: PositiveInt | None = Field(None, description="How many samples; absent: all, or fraction of them.")
    fraction: Fraction | None = Field(None, description="Which fraction of the samples.")
    how: Literal["first", "even", "stratified", "random"] = Field(
        "stratified", description="How count or fraction choose."
    )
    seed: int = Field(0, description="Seed of the random and stratified choices.")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.count is not None and self.fraction is not None:
            raise ValueError(f"count {self.count} and fraction {self.fraction} are both given; keep one of them")
        return self


class LabelNoise(Table):
    """Flips a seeded fraction of the labels, in training and in measurement alike."""

    fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="Fraction of the split (or of data.select.classes) with a flipped label."
    )
    seed: int = Field(0, description="Seed of the flips.")


class Exposure(Table):
    """Which classes the run trains on at which epoch (class-incremental runs)."""

    start: PositiveInt = Field(5, description="Number of classes in the first task.")
    step: PositiveInt = Field(5, description="Number of classes added by each task.")
    every: PositiveInt = Field(200, description="Epochs per task.")
    order: tuple[int, ...] | Path | None = Field(
        None, description="Order in which classes are introduced: a list, or an .npy file; absent: 0, 1, 2, …"
    )
    schedule: dict[int, tuple[int, ...]] | None = Field(
        None,
        description="Explicit schedule instead: checkpoint epoch (0: the start) -> the classes trained on after it.",
    )

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.schedule is not None:
            fields = type(self).model_fields
            given = [n for n in ("order", "start", "step", "every") if getattr(self, n) != fields[n].default]
            if given:
                raise ValueError(f"schedule and {' and '.join(given)} are both given; keep schedule or the others")
            if any(epoch < 0 for epoch in self.schedule):
                raise ValueError(f"schedule starts at epoch {min(self.schedule)}; epochs start at 0")
        if isinstance(self.order, tuple) and len(set(self.order)) < len(self.order):
            twice = sorted({c for c in self.order if self.order.count(c) > 1})
            raise ValueError(f"order introduces classes {twice} more than once; name each class once")
        return self


class Data(Table):
    """What the network is shown."""

    source: Literal["digits", "cifar10", "cifar100", "folder", "places365", "arrays"] = Field(
        "digits", description="digits, cifar10, cifar100 (torchvision's on-disk format), folder, places365, arrays."
    )
    root: Path | None = Field(None, description="Folder or file of the data set; digits needs none.")
    split: str = Field("train", description="Split of the data set; 'all' where the source allows it.")
    download: bool = Field(False, description="Allow the data set to be downloaded.")
    select: Selection = Field(default_factory=Selection, description="Which samples of the split.")
    label_noise: LabelNoise | None = Field(None, description="Flip a fraction of the labels.")
    exposure: Exposure | None = Field(None, description="Class schedule of a class-incremental run.")
    resident_gib: PositiveFloat = Field(4.0, description="Sets up to this size are kept in memory as uint8.")

    @model_validator(mode="after")
    def _has_a_root(self) -> Self:
        if self.root is None and self.source != "digits":
            raise ValueError(f'source {self.source!r} needs a root; add root = "path/of/the/data"')
        return self


class Validation(Table):
    """The data that training validates on: [data], with these differences."""

    split: str = Field("test", description="Split of the same source.")
    root: Path | None = Field(None, description="Another root, if it lies elsewhere.")
    select: Selection = Field(default_factory=Selection, description="Which samples of that split.")
    allow_overlap: bool = Field(False, description="Allow samples that are also trained on.")


class Train(Table):
    """How to train, with checkpoints. Absent from the study: checkpoints are only read."""

    epochs: PositiveInt = Field(10, description="Number of epochs.")
    batch_size: PositiveInt = Field(128, description="Samples per optimizer step.")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Optimizer.")
    lr: PositiveFloat = Field(0.1, description="Initial learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum (sgd).")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="Weight decay.")
    milestones: tuple[PositiveFloat, ...] = Field(
        (),
        description="Epochs (or fractions of `epochs` below 1) at which lr drops; with data.exposure, of each task.",
    )
    step_size: PositiveInt | None = Field(None, description="Or: drop lr every so many epochs.")
    gamma: PositiveFloat = Field(0.1, description="Factor of a drop.")
    augment: tuple[Literal["crop", "flip", "random_resized_crop"], ...] = Field(
        (), description="Augmentations, in order."
    )
    save_every_epochs: Every = Field(1, description="A checkpoint after every so many epochs, and at the end; 0: none.")
    save_every_steps: Every = Field(None, description="And/or after every so many optimizer steps; 0: none.")
    save_initial: bool = Field(True, description="Keep the untrained network too.")
    seed: int = Field(0, description="Seed of weights, shuffling and augmentation.")
    precision: Literal["32", "bf16", "16"] = Field("32", description="Lightning's precision (AMP).")
    pretrained: bool = Field(False, description="Start from torchvision's weights (downloads them).")
    validation: Validation | None = Field(None, description="Validation data; absent: none.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.milestones and self.step_size is not None:
            raise ValueError("milestones and step_size are both given; keep the one that lr follows")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} are not in order; sort them")
        if self.save_every_epochs is None and self.save_every_steps is None:
            raise ValueError("no checkpoint would be saved; set save_every_epochs or save_every_steps above 0")
        return self


class StoreTable(Table):
    """Where the run's store is."""

    url: str = Field("store.icechunk", min_length=1, description="Local folder or s3://bucket/prefix.")
    endpoint: str | None = Field(None, description="Endpoint of an S3-compatible server.")
    region: str | None = Field(None, description="S3 region.")

    @model_validator(mode="after")
    def _endpoint_needs_s3(self) -> Self:
        for name in ("endpoint", "region"):
            if getattr(self, name) is not None and not self.url.startswith("s3://"):
                raise ValueError(f"{name} is for s3:// stores, and url is {self.url!r}; change url or remove {name}")
        return self


class Compute(Table):
    """How to compute. Nothing here changes a number except where bf16 says so."""

    device: Device = Field("auto", description="cpu, cuda, cuda:1, mps, or auto.")
    batch_size: PositiveInt = Field(64, description="Samples per measuring pass.")
    workers: PositiveInt = Field(1, description="Checkpoints measured at once.")
    threads: PositiveInt | None = Field(None, description="Torch threads per worker; absent: cores / workers.")
    dask: str | None = Field(None, description="Address of a running dask cluster, e.g. tcp://host:8786.")
    retries: Annotated[int, Field(ge=0)] = Field(2, description="Retries of a row after an I/O error.")


class Samples(Table):
    """The samples cube: what each checkpoint makes of each sample."""

    gradients: bool = Field(True, description="Measure input-gradient norms.")
    grand: bool = Field(False, description="Measure parameter-gradient norms (GraNd).")
    curvature: bool = Field(False, description="Measure input-loss curvature.")
    curvature_draws: PositiveInt = Field(10, description="Rademacher draws per sample.")
    curvature_h: PositiveFloat = Field(1e-3, description="Step of the finite difference.")
    curvature_seed: int = Field(0, description="Seed of the draws.")
    bf16: bool = Field(False, description="Measure in bfloat16: faster, less exact, labelled as such.")
    allow_non_finite: bool = Field(False, description="Store NaN and infinity instead of failing the row.")


class Study(Table):
    """A whole study: one file, one run, one store."""

    name: str = Field("run", min_length=1, description="Name of the run.")
    model: Model = Field(default_factory=Model)
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    data: Data = Field(default_factory=Data)
    train: Train | None = Field(None)
    store: StoreTable = Field(default_factory=StoreTable)
    compute: Compute = Field(default_factory=Compute)
    samples: Samples | None = Field(None)

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
        if self.train is not None:
            self._check_written_names(self.train)
        return self

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


def pattern_fields(pattern: str) -> tuple[str, ...]:
    """Return the field names of a checkpoint pattern, e.g. ``("epoch", "step")``.

    Raises
    ------
    ValueError
        If a brace is not closed, or a field has no plain name.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ValueError(f"pattern {pattern!r}: {error}; close every brace, and write a literal one as {{{{") from None
    for name in names:
        if not name.isidentifier():
            raise ValueError(f"pattern {pattern!r} has a field {{{name}}}; name it with letters, e.g. {{epoch}}")
    return tuple(names)


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
    return study.model_copy(update={"store": store, "model": model})
