"""The tables of what is measured: one per cube."""

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
