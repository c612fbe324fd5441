"""The tables of what a network is shown, and of how it is trained."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from neurolens.study.tables import Table

Fraction = Annotated[float, Field(gt=0, le=1)]
Every = Annotated[NonNegativeInt | None, AfterValidator(lambda every: every or None)]  # 0 is how TOML says never


class Selection(Table):
    """Which samples of the split are used."""

    classes: tuple[int | str, ...] | None = Field(None, description="Classes kept, by index or name.")
    ids: Path | None = Field(None, description="Text file with one sample id a line.")
    count: PositiveInt | None = Field(None, description="How many samples; absent: all, or fraction of them.")
    fraction: Fraction | None = Field(None, description="Which fraction of the samples.")
    how: Literal["first", "even", "strided", "spaced", "stratified", "random"] = Field(
        "stratified",
        description="How count or fraction choose n of N samples: even takes those at floor(i N / n), strided at "
        "i floor(N / n), both for i = 0 to n - 1, and spaced at linspace(0, N - 1, n) rounded down.",
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


class Text(Table):
    """How texts are read and tokenised, where the source is one of texts."""

    column: str = Field("text", description="Column of the text in jsonl, parquet and datasets.")
    label: str | None = Field(None, description="Column of an integer or named class; absent: texts have none.")
    dataset: str | None = Field(None, description="Name of the data set on the hub (source `datasets`).")
    config: str | None = Field(None, description="Its configuration, e.g. wikitext-2-raw-v1.")
    max_length: PositiveInt = Field(512, description="Tokens kept of each text.")


class ImageNet(Table):
    """The files beside the images of ImageNet, where they lie elsewhere or have other names than the usual."""

    ground_truth: Path | None = Field(
        None,
        description="ILSVRC ids of the flat validation images, one a line; absent: "
        "ILSVRC2012_validation_ground_truth.txt beside the root or in its devkit.",
    )
    wnids: Path | None = Field(
        None,
        description="The wnid of each ILSVRC id, one a line from id 1 on, or the devkit's meta.mat; absent: "
        "imagenet_classes.txt, wnids.txt or meta.mat beside the root or in its devkit.",
    )
    class_index: Path | None = Field(
        None,
        description="Names of the classes: imagenet_class_index.json, or lines of a wnid and its name; absent: that "
        "file, class_index.json, LOC_synset_mapping.txt or synset_words.txt beside the root, or wnids as names.",
    )


class Data(Table):
    """What the network is shown."""

    source: Literal[
        "digits",
        "cifar10",
        "cifar100",
        "folder",
        "imagenet",
        "places365",
        "arrays",
        "text",
        "jsonl",
        "parquet",
        "datasets",
    ] = Field(
        "digits",
        description="digits, cifar10, cifar100 (torchvision's on-disk format), folder, imagenet (class folders of "
        "wnids, or the flat validation folder), places365, arrays; texts: text (a text a line), jsonl, parquet, or "
        "datasets (by name on the hub).",
    )
    root: Path | None = Field(
        None,
        description="Folder or file of the data set; digits needs none, datasets only for what save_to_disk wrote.",
    )
    split: str = Field("train", description="Split of the data set; 'all' where the source allows it.")
    download: bool = Field(False, description="Allow the data set to be downloaded.")
    select: Selection = Field(default_factory=Selection, description="Which samples of the split.")
    label_noise: LabelNoise | None = Field(None, description="Flip a fraction of the labels.")
    exposure: Exposure | None = Field(None, description="Class schedule of a class-incremental run.")
    text: Text = Field(default_factory=Text, description="How texts are read and tokenised.")
    imagenet: ImageNet = Field(default_factory=ImageNet, description="The files beside the images of ImageNet.")
    resident_gib: PositiveFloat = Field(4.0, description="Sets up to this size are kept in memory as uint8.")

    @model_validator(mode="after")
    def _has_a_root(self) -> Self:
        if self.source == "datasets" and self.text.dataset is None and self.root is None:
            raise ValueError(
                "source 'datasets' needs a name; add dataset = \"owner/name\" to [data.text], or the root of a folder "
                "that save_to_disk wrote"
            )
        if self.root is None and self.source not in ("digits", "datasets"):
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
