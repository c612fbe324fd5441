"""Study: the one configuration file. Every table and field is declared, documented and checked here."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(gt=0, le=1)]


class Table(BaseModel):
    """A table of the study file: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Preprocessing(Table):
    """What turns a decoded image into the network's input. It belongs to the model, and is recorded with every row."""

    resize: PositiveInt | None = Field(None, description="Shorter side in pixels after resizing; absent: as it is.")
    crop: PositiveInt | None = Field(None, description="Side of the centre crop in pixels; absent: none.")
    mean: tuple[float, ...] | None = Field(
        None, description="Per-channel mean of pixels in [0, 1]; absent: the model's."
    )
    std: tuple[float, ...] | None = Field(None, description="Per-channel standard deviation; absent: the model's.")


class Model(Table):
    """The network."""

    name: str = Field(
        "digits_convnet",
        description="digits_convnet, cifar_resnet18 (3x3 stem, `linear`/`shortcut`), cifar_resnet18_incremental "
        "(3x3 stem with bias, `fc`), any torchvision name, or `file.py:function`.",
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


class CheckpointFile(Table):
    """One explicitly listed checkpoint."""

    path: Path = Field(description="The file.")
    epoch: int | None = Field(None, description="Its epoch.")
    step: int | None = Field(None, description="Its optimizer step.")


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


class LabelNoise(Table):
    """Flips a seeded fraction of the labels, in training and in measurement alike."""

    fraction: Annotated[float, Field(ge=0, lt=1)] = Field(description="Fraction of the samples with a flipped label.")
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
        None, description="Explicit schedule instead: first epoch -> the classes active from there on."
    )


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
    milestones: tuple[float, ...] = Field(
        (), description="Epochs (or fractions of `epochs` below 1) at which lr drops."
    )
    step_size: PositiveInt | None = Field(None, description="Or: drop lr every so many epochs.")
    gamma: PositiveFloat = Field(0.1, description="Factor of a drop.")
    augment: tuple[Literal["crop", "flip", "random_resized_crop"], ...] = Field(
        (), description="Augmentations, in order."
    )
    save_every_epochs: PositiveInt | None = Field(1, description="A checkpoint after every so many epochs.")
    save_every_steps: PositiveInt | None = Field(None, description="And/or after every so many optimizer steps.")
    save_initial: bool = Field(True, description="Keep the untrained network too.")
    seed: int = Field(0, description="Seed of weights, shuffling and augmentation.")
    precision: Literal["32", "bf16", "16"] = Field("32", description="Lightning's precision (AMP).")
    pretrained: bool = Field(False, description="Start from torchvision's weights (downloads them).")
    validation: Validation | None = Field(None, description="Validation data; absent: none.")


class StoreTable(Table):
    """Where the run's store is."""

    url: str = Field("store.icechunk", description="Local folder or s3://bucket/prefix.")
    endpoint: str | None = Field(None, description="Endpoint of an S3-compatible server.")
    region: str | None = Field(None, description="S3 region.")


class Compute(Table):
    """How to compute. Nothing here changes a number except where bf16 says so."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, mps, or auto.")
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

    name: str = Field("run", description="Name of the run.")
    model: Model = Field(default_factory=Model)
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    data: Data = Field(default_factory=Data)
    train: Train | None = Field(None)
    store: StoreTable = Field(default_factory=StoreTable)
    compute: Compute = Field(default_factory=Compute)
    samples: Samples | None = Field(None)
