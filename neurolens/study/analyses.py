"""The tables of what is measured: one per cube."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from neurolens.study.tables import Table

Layers = Annotated[Literal["auto"] | tuple[str, ...], Field(union_mode="left_to_right")]


class Samples(Table):
    """The samples cube: what each checkpoint makes of each sample."""

    gradients: bool = Field(True, description="Measure input-gradient norms.")
    grand: bool = Field(False, description="Measure parameter-gradient norms (GraNd).")
    grand_arithmetic: Literal["mixed", "float64", "float32"] = Field(
        "mixed",
        description="What GraNd is computed in: float64 forward and float32 products backward, or one of them "
        "throughout. float32 takes half the time; a ReLU that rounding turns costs its sample 1e-6 or more.",
    )
    curvature: bool = Field(False, description="Measure input-loss curvature.")
    curvature_draws: PositiveInt = Field(10, description="Rademacher draws per sample.")
    curvature_h: PositiveFloat = Field(1e-3, description="Step of the finite difference.")
    curvature_seed: int = Field(0, description="Seed of the draws.")
    bf16: bool = Field(False, description="Measure in bfloat16: faster, less exact, labelled as such.")
    allow_non_finite: bool = Field(False, description="Store NaN and infinity instead of failing the row.")


class Units(Table):
    """The units cube: what is kept of every unit's activations at each checkpoint."""

    layers: Layers = Field(
        "auto",
        description="auto, or globs over module paths, `*` within a part and `**` across parts, e.g. "
        "['layer4.*', 'layers.*.mlp.down_proj:input', 'relu#1']; `neurolens layers` lists them.",
    )
    tokens: Literal["token", "sample", "seed"] = Field(
        "token",
        description="How tokens of texts count: every token the same; every text the same; or as the reference "
        "counts, padding included (its numbers then depend on compute.batch_size).",
    )
    skip_first: NonNegativeInt = Field(0, description="First tokens of each text that are left out.")
    abs_dev: bool = Field(False, description="Measure mean absolute deviations, in a second pass (redo_centred).")
    histogram: bool = Field(False, description="Measure histograms of 256 logarithmic bins.")
    classes: bool = Field(False, description="Measure sums per class of the samples.")
    positions: bool = Field(False, description="Measure how often each unit fires at each token position.")
    top: NonNegativeInt = Field(0, description="How many of the samples that excite a unit most are kept.")
    weights: bool = Field(False, description="Measure weight magnitudes, per parameter and out of each unit.")
    bf16: bool = Field(False, description="Measure in bfloat16: faster, less exact, labelled as such.")
    allow_non_finite: bool = Field(False, description="Leave NaN and infinity in instead of failing the row.")


class Activations(Table):
    """The activations cube: every unit's activation on every sample."""

    layers: Layers = Field("auto", description="auto, or globs over module paths.")
    pool: Literal["mean", "max", "full"] = Field(
        "mean", description="Over the positions of a map, or the tokens of a text: mean, max, or every one kept."
    )
    skip_first: NonNegativeInt = Field(0, description="First tokens of each text that are left out.")
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="float16, or float32 rounded to 10 bits of mantissa and compressed."
    )
    memory_mib: PositiveInt = Field(512, description="Memory that buffered activations may take, per worker.")
    bf16: bool = Field(False, description="Measure in bfloat16: faster, less exact, labelled as such.")
    allow_non_finite: bool = Field(False, description="Store NaN and infinity instead of failing the row.")


class ConceptFiles(Table):
    """Where a segmentation data set keeps what, below its root."""

    images: str = Field("images", description="Folder of the images; folders in it are searched too.")
    labels: tuple[str, ...] = Field(("labels",), description="Folders of label pictures, one plane of each.")
    names: str = Field("names.csv", description="Table of number, name and category, or a text file of names.")
    category: str = Field("object", description="Category of names that have none of their own.")
    fit: Literal["crop", "squash"] = Field("crop", description="How images and labels come to one size.")
    ignored: tuple[NonNegativeInt, ...] = Field((), description="Numbers that mean no label.")
    unlabelled: Literal["error", "drop"] = Field("error", description="Images without a label picture.")


class Concepts(Table):
    """The concepts cube: what the masks of units have in common with labelled pixels, at each checkpoint."""

    root: Path = Field(description="Folder of the concept data: Broden, or any segmentation data set.")
    categories: tuple[str, ...] | None = Field(None, description="Categories that are used; absent: all.")
    split: str | None = Field(None, description="Images of this split only (Broden).")
    size: PositiveInt | None = Field(
        None, description="Side of the images: which variant of Broden; what others become."
    )
    files: ConceptFiles | None = Field(None, description="Where a segmentation data set keeps what, if elsewhere.")
    download: bool = Field(False, description="Allow Broden to be fetched.")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Of the archive that is fetched.")
    whole: bool = Field(
        False,
        description="Show images as they are, all of each, and not as model.preprocessing resizes and crops those that "
        "are trained on; mean and std stay the model's.",
    )
    layers: Layers = Field("auto", description="auto, or globs over module paths; layers with maps.")
    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.005, description="Share of a unit's activations that is above its threshold."
    )
    compat: Literal["lite"] | None = Field(None, description="lite: the rank of NetDissect-Lite's threshold.")
    threshold_from: Literal["each", "last"] | NonNegativeInt = Field(
        "each",
        description="Whose thresholds a checkpoint is dissected with: its own (each), or those of one checkpoint: the "
        "last, or the one of this epoch or step.",
    )
    memory_mib: PositiveInt = Field(
        56, description="Memory for what may still be above a threshold; more goes to disk."
    )
    top: NonNegativeInt = Field(9, description="How many of the images that excite a unit most are kept.")
    rotations: NonNegativeInt = Field(0, description="Random rotations of each layer's units, for a null of IoU.")
    seed: int = Field(0, description="Seed of the rotations.")
    bf16: bool = Field(False, description="Measure in bfloat16: faster, less exact, labelled as such.")


class Effects(Table):
    """The effects cube: what the outputs lose without a unit, just before and after its concepts died."""

    reading: Literal["paper", "lite"] = Field("paper", description="Reading of the IoU that events are found in.")
    tau: PositiveFloat = Field(0.04, description="IoU of a concept that is alive.")
    k: PositiveInt = Field(3, description="Checkpoints below tau that confirm a death.")
    hysteresis: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of tau that a death falls below it."
    )
    by: Literal["unit-concept", "unit"] = Field(
        "unit-concept", description="What lives: a concept in a unit, or a unit."
    )
    compat: Literal["seed"] | None = Field(
        None, description="seed: the reference's events, by unit, and its checkpoints before and after a death."
    )
    smoothing_window: PositiveInt = Field(1, description="Checkpoints of a trailing mean of the IoU.")
    min_alive: PositiveInt = Field(1, description="Alive checkpoints that a life needs in order to count.")
    replace: Literal["zero", "mean"] = Field("zero", description="What a unit that is taken away puts out.")
    samples: PositiveInt | None = Field(None, description="How many samples of [data], stratified; absent: all.")
    conductance: bool = Field(False, description="Measure layer conductance too, as the reference does.")
    conductance_samples: PositiveInt = Field(128, description="Of how many samples, the first ones.")
    conductance_batch: PositiveInt = Field(16, description="Samples of a batch; means of batches are averaged.")
    conductance_steps: PositiveInt = Field(50, description="Steps of the integral.")
    bf16: bool = Field(False, description="Measure in bfloat16: faster, less exact, labelled as such.")
