"""The run's own tables: network, checkpoints, store and compute."""

import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from neurolens.errors import nearest

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]

FACTORY = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)")
TRANSFORMERS = "transformers"
OPEN_CLIP = "open_clip/"


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
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="How resizing interpolates; absent: the model's, bilinear where it says nothing."
    )

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}; give both the same number")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave interpolation out where it is not set, as keys of rows that are older than it have it."""
        written: dict[str, Any] = handler(self)
        if self.interpolation is None:
            written.pop("interpolation", None)
        return written


class Transformers(Table):
    """A network of the transformers library, by hub name or folder; model.name is then ``transformers``."""

    source: str = Field(min_length=1, description="Folder with a config.json, or a name on the hub.")
    auto: Literal["AutoModel", "AutoModelForCausalLM"] = Field(
        "AutoModel", description="Which class reads it: AutoModel leaves the language-model head out."
    )
    tokenizer: str | None = Field(None, description="Folder or name of the tokenizer; absent: source.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="What the weights are held in.")
    download: bool = Field(False, description="Allow what is not on this machine to be fetched from the hub.")


class Model(Table):
    """The network."""

    name: str = Field(
        "digits_convnet",
        description="digits_convnet, digits_clip (an attention pool, and words for its classes), shapes_convnet, "
        "cifar_resnet18 (3x3 stem, `linear`/`shortcut`), cifar_resnet18_incremental (3x3 stem, biases, `fc`), any "
        "torchvision name, `open_clip/RN50` or any other of open_clip with CLIP's own towers, `transformers`, or "
        "`file.py:function`.",
    )
    classes: PositiveInt = Field(10, description="Number of classes.")
    options: dict[str, bool | int | float | str] = Field({}, description="Further keyword arguments of the factory.")
    preprocessing: Preprocessing = Field(default_factory=Preprocessing, description="Overrides of the preprocessing.")
    transformers: Transformers | None = Field(None, description="The network of the transformers library.")

    @model_validator(mode="after")
    def _names_its_transformer(self) -> Self:
        if (self.name == TRANSFORMERS) != (self.transformers is not None):
            raise ValueError(
                f"name is {self.name!r} and there is {'a' if self.transformers else 'no'} [model.transformers] table; "
                f"a network of the transformers library needs name = {TRANSFORMERS!r} and that table"
            )
        return self


class Checkpoints(Table):
    """Where a run's checkpoints are, and which of them to use."""

    folder: Path = Field(Path("checkpoints"), description="Folder that holds them.")
    pattern: str = Field(
        "epoch_{epoch}.pt",
        description="Name of files, or of folders that save_pretrained wrote, with fields: {epoch} and/or {step} are "
        "integers, any other {field} is matched as text.",
    )
    fields: dict[str, str | int | float] = Field({}, description="Required values of the pattern's other fields.")
    files: tuple["CheckpointFile", ...] = Field((), description="Explicit list; used instead of folder and pattern.")
    revisions: str | None = Field(
        None, description="Revisions of model.transformers.source instead of files, e.g. 'step{step}'."
    )
    steps: Literal["pythia"] | tuple[int, ...] = Field(
        (), description="The epochs or steps of the revisions; pythia: the 154 of the Pythia models."
    )
    series: Literal["epoch", "step"] | None = Field(
        None, description="The series dimension; absent: epoch if every file has a distinct one, else step."
    )
    download: bool = Field(False, description="Allow weights that torchvision or open_clip publishes to be fetched.")
    start: int | None = Field(None, description="First epoch (or step) used.")
    end: int | None = Field(None, description="Last epoch (or step) used, inclusive.")
    stride: PositiveInt | None = Field(None, description="Use epochs (or steps) start, start + stride, …")
    expect: tuple[int, int] | None = Field(None, description="Declared range, inclusive: gaps against it are reported.")
    expect_every: PositiveInt = Field(1, description="Spacing of the declared range.")
    state_key: str | None = Field(None, description="Key of the state dict inside the file; absent: found.")
    strip_prefixes: tuple[str, ...] = Field((), description="Prefixes removed from tensor names, e.g. 'module.'.")
    renames: tuple[Literal["densenet"], ...] = Field(
        (), description="Old tensor names replaced by today's; densenet: norm.1 by norm1, as torchvision's files need."
    )
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
    """One explicitly listed checkpoint: a file, or weights that torchvision or open_clip publishes."""

    path: Path | None = Field(None, description="The file.")
    weights: str | None = Field(
        None,
        description="Or weights by torchvision's name for them, e.g. DenseNet121_Weights.IMAGENET1K_V1, or by "
        "open_clip's network and tag, e.g. open_clip/RN50/openai.",
    )
    epoch: int | None = Field(None, description="Its epoch.")
    step: int | None = Field(None, description="Its optimizer step.")

    @model_validator(mode="after")
    def _has_a_source_and_a_position(self) -> Self:
        if (self.path is None) == (self.weights is None):
            given = "neither path nor weights is" if self.path is None else "path and weights are both"
            raise ValueError(f"{given} given; give a checkpoint's file as path, or a published name as weights")
        if self.epoch is None and self.step is None:
            raise ValueError(f"{self.path or self.weights} has neither epoch nor step; say which it is, e.g. epoch = 3")
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
