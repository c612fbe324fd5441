"""The tables of pairs of a unit and a head: the pool, the scalars, the phrases, and codes of pairs in phrases."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from neurolens.study.tables import Table

Share = Annotated[float, Field(gt=0, lt=1)]


class Pools(Table):
    """The pools cube: the attention pool's matrices at each checkpoint, and totals of its pairs over all images."""

    module: str | None = Field(None, description="Path of the pool's module; absent: the only one of the network.")
    resample: bool = Field(False, description="Interpolate the positions where maps have another size than the pool's.")
    totals: bool = Field(
        True,
        description="Sum the scalars of all images up, and keep each pair's extremes: all there is without [pairs].",
    )
    ranks: PositiveInt = Field(
        50, description="How many of the largest and of the smallest scalars of a pair are kept."
    )
    tolerance: Share = Field(1e-5, description="Largest residual of what the pairs add up to, of the embedding.")


class Pairs(Table):
    """The pairs cube: the scalar of every unit and head at every image."""

    dtype: Literal["float32", "float16"] = Field(
        "float32", description="How scalars are stored: float16 takes half, and is 5e-4 of each off."
    )
    attention: bool = Field(True, description="Keep the attention of every head over the tokens, too.")
    split: bool = Field(False, description="Keep the parts of the scalars, too: patches, token 0, positions.")
    memory_mib: PositiveInt = Field(1024, description="Memory for a block of images that is measured and written.")


class PhraseSet(Table):
    """One set of phrases, and how they are embedded."""

    phrases: tuple[str, ...] = Field((), description="The phrases.")
    file: Path | None = Field(None, description="Or a text file, one a line.")
    known: Literal["imagenet", "pascal_context", "classes"] | None = Field(
        None, description="Or: the 1000 classes of ImageNet, the 59 of PASCAL Context, or the classes of [data]."
    )
    templates: Literal["none", "openai"] | tuple[str, ...] | Path = Field(
        "none",
        description="Prompts with {} where the phrase goes: a list, a text file, openai (80 of them), or none.",
    )
    embeddings: Path | None = Field(
        None, description="A .pt or .npy file of embeddings in order of the phrases: nothing is run then."
    )
    repeated: Literal["refuse", "drop", "keep"] | None = Field(
        None, description="What is done where a phrase comes twice. Absent: refuse, or keep where they are classes."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("phrases", "file", "known") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) or 'no phrases'} given, and one of phrases, file and known was needed; "
                "name phrases = ['a dog', …], or a file with one a line"
            )
        if self.embeddings is not None and self.templates != "none":
            raise ValueError("embeddings are read as they are, and templates are given; leave templates out")
        return self


class Texts(Table):
    """The texts cube: phrases, embedded by the text tower of each checkpoint."""

    sets: dict[str, PhraseSet] = Field(min_length=1, description="Name -> phrases, e.g. [texts.sets.classes].")
    block: PositiveInt = Field(1024, description="Phrases that are embedded and written together.")

    @model_validator(mode="after")
    def _plain_names(self) -> Self:
        wrong = sorted(name for name in self.sets if not name or "/" in name)
        if wrong:
            raise ValueError(
                f"texts.sets has the name {wrong[0]!r}; a slash parts it from the phrases, so leave it out"
            )
        return self


class Codes(Table):
    """The codes cube: the direction of each pair, told as a sum of few phrases."""

    words: str = Field("words", description="The set of [texts] that pairs are told in.")
    method: Literal["omp", "lasso"] = Field(
        "omp", description="Orthogonal matching pursuit, or the lasso without negative coefficients (SpLiCE)."
    )
    atoms: PositiveInt = Field(64, description="Phrases of a code; of the lasso, the largest so many are kept.")
    penalty: Annotated[float, Field(gt=0)] = Field(0.25, description="Of the lasso.")
    norm: Literal["rows", "columns"] = Field(
        "rows", description="How phrases are put on one scale; columns is the reference's way."
    )
    percentile: Annotated[float, Field(ge=0, lt=100)] | None = Field(
        None, description="Only pairs whose norm is at or above this percentile; needs pools.totals. Absent: all."
    )
    norms_from: Literal["last"] | NonNegativeInt = Field(
        "last", description="Checkpoint whose norms choose the pairs of all: the last, or an epoch or step."
    )
    block: PositiveInt = Field(1024, description="Pairs that are told and written together.")
