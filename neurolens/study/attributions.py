"""The tables of attributions by unit cluster: how units are put into clusters, and what is measured of each."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from neurolens.study.tables import Table

Share = Annotated[float, Field(gt=0, le=1)]


class Clusters(Table):
    """The clusters cube: which units of a layer act alike, at each checkpoint."""

    layers: tuple[str, ...] = Field(
        min_length=1, description="Layers, by module path or globs, e.g. ['features.denseblock*']."
    )
    k: tuple[Annotated[int, Field(ge=2)], ...] = Field((2, 3, 4, 5), min_length=1, description="Numbers of clusters.")
    images: PositiveInt = Field(1000, description="How many images of [data] the statistics are of; all, if fewer.")
    sample: Literal["stratified", "first"] = Field(
        "stratified", description="Which: as many of each class, or the first ones, as the reference takes them."
    )
    seed: int = Field(0, description="Seed of the stratified choice.")
    statistics_at: dict[str, str] = Field(
        {},
        description="Layer -> another one, of as many units, whose activations speak for it, e.g. the norm behind it.",
    )
    threshold: float | None = Field(None, description="Activation from which a unit counts as high; absent: 0.1.")
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Or: this quantile of all activations of the layer."
    )
    method: Literal["kmeans", "agglomerative", "gmm"] = Field("kmeans", description="How clusters are found.")
    starts: PositiveInt | None = Field(None, description="Starts, of which the best is kept; absent: 10.")
    start_seed: NonNegativeInt | None = Field(None, description="Seed of the starts; absent: 0.")
    compat: Literal["seed"] | None = Field(
        None, description="seed: the reference's clusters: k-means from one start, of seed 42."
    )
    bf16: bool = Field(False, description="Measure in bfloat16: faster, less exact, labelled as such.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = sorted({k for k in self.k if self.k.count(k) > 1})
        if twice:
            raise ValueError(f"k lists {twice[0]} more than once; name each number of clusters once")
        if self.threshold is not None and self.quantile is not None:
            raise ValueError("threshold and quantile are both given; keep one of them")
        given = [name for name in ("starts", "start_seed") if getattr(self, name) is not None]
        if self.compat is not None and (given or self.method != "kmeans"):
            raise ValueError(
                f"compat = 'seed' is k-means from one start of seed 42; leave out {given or ['method']}, or compat"
            )
        return self


class Attributions(Table):
    """The attributions cube: what each cluster of units carries of the answer to each image."""

    images: PositiveInt | None = Field(None, description="How many images of [data]; absent: all.")
    sample: Literal["stratified", "even", "strided", "spaced", "first", "random"] = Field(
        "stratified",
        description="Which; stratified ones stay when there are more. The reference takes strided ones, or spaced.",
    )
    seed: int = Field(0, description="Seed of the stratified and random choices.")
    clusters_from: Literal["each", "last"] | NonNegativeInt = Field(
        "last",
        description="Whose clusters a checkpoint is measured with: its own (each), or those of one checkpoint: the "
        "last, or the one of this epoch or step.",
    )
    files: dict[str, tuple[Path, ...]] = Field(
        {}, description="Layer -> cluster_results.npz files of the reference, measured beside the clusters."
    )
    sets: tuple[Literal["only", "without"], ...] = Field(
        ("only", "without"), min_length=1, description="Each cluster alone, and all units without it."
    )
    unions: dict[str, tuple[str, ...]] = Field(
        {}, description="Name -> clusters of one layer that go together, e.g. ['features.denseblock1/k3/0', …]."
    )
    controlled: tuple[str, ...] = Field(
        (), description="Sets that get random controls, by name or globs, e.g. ['*/without k3/0']."
    )
    controls: NonNegativeInt = Field(20, description="Random sets of as many units, for each controlled set.")
    control_seed: NonNegativeInt = Field(0, description="Seed of the controls.")
    strata: dict[str, tuple[PositiveInt, ...]] = Field(
        {},
        description="Layer -> units at which a new stratum begins: controls then take as many of each, e.g. [64] keeps "
        "apart what denseblock1 carries in.",
    )
    control_compat: Literal["seed"] | None = Field(None, description="seed: the reference's draws.")
    methods: tuple[str, ...] = Field(
        ("integrated_gradients", "saliency"),
        min_length=1,
        description="integrated_gradients, saliency, input_x_gradient; and of all units together any class of "
        "captum.attr, e.g. 'captum.DeepLift'.",
    )
    target: Literal["predicted", "label"] = Field("predicted", description="Class that is explained.")
    scored: Literal["target", "predicted"] = Field(
        "target", description="Class whose fall is measured: the explained one, or (the reference) the predicted one."
    )
    explain: Literal["logit", "log_prob", "margin"] = Field("logit", description="What of the class is explained.")
    steps: PositiveInt = Field(50, description="Steps of the integral.")
    rule: Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"] = Field(
        "gausslegendre", description="Where the integral is sampled, as captum names it."
    )
    baseline: Annotated[Literal["zero", "black", "mean", "blur"] | float, Field(union_mode="left_to_right")] = Field(
        "zero",
        description="Where paths start: zero of the network's input (the mean colour), black, the image's mean, the "
        "image blurred, or a number.",
    )
    grid: PositiveInt = Field(14, description="Patches per side.")
    mass: Share = Field(0.9, description="Share of the mass that sparsity is about.")
    drop: Share = Field(0.1, description="Share of the entries that faithfulness takes away.")
    fill: Literal["zero", "mean", "blur", "road"] = Field("zero", description="What comes in their place.")
    faithfulness: bool = Field(True, description="Measure how far the class falls without the highest entries.")
    curves: bool = Field(False, description="Measure deletion and insertion curves, over patches.")
    reduced: bool = Field(False, description="Keep maps summed over channels, as float16.")
    full: NonNegativeInt = Field(0, description="Of how many images, evenly spaced, whole maps are kept.")
    compat: Literal["seed"] | None = Field(
        None, description="seed: the reference's arithmetic of sparsity and faithfulness, channels apart."
    )
    cotangents: Literal["float32", "bfloat16"] = Field(
        "float32", description="What gradients through clusters are followed back in: bfloat16 is faster, less exact."
    )
    tolerance: Annotated[float, Field(gt=0)] = Field(1e-4, description="Largest residual of a layer taken as a cut.")
    block: PositiveInt = Field(32, description="Images that are measured and written together.")
    memory_mib: PositiveInt = Field(2048, description="Memory for maps and for a pass of the network.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        apart = sorted(layer for layer, starts in self.strata.items() if starts)
        if self.control_compat is not None and apart:
            raise ValueError(
                f"control_compat = 'seed' draws from all units, and strata of {apart[0]} are given; set them to [], or "
                "leave control_compat out"
            )
        return self
