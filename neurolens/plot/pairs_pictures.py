"""The pictures of the cubes of pairs, drawn and captioned: what ``plot`` saves and the report shows."""

from typing import Any

import numpy as np
import xarray as xr

from neurolens import schema
from neurolens.errors import DataError
from neurolens.pairs.ablation import curve_difference
from neurolens.pairs.describing import describe_unit
from neurolens.plot.pairs_card import card_size, unit_card
from neurolens.plot.pairs_curves import ablation_curves, norm_histogram, reconstruction_curve
from neurolens.plot.pairs_following import FOLLOWED, direction_turns, words_over_training
from neurolens.plot.pairs_images import ImagesById, gallery_size, retrieval_gallery
from neurolens.plot.pairs_numbers import READ, RESAMPLES, PairNumbers, spoken, strongest_pairs
from neurolens.plot.picture import Picture
from neurolens.plot.style import new_figure, styled

CARDS = 2
"""Of how many units there are cards."""


def pair_pictures(
    given: PairNumbers, *, images: ImagesById | None = None, cards: int = CARDS
) -> tuple[list[Picture], list[str]]:
    """Draw every picture that the cubes of pairs allow. **Eager**.

    Parameters
    ----------
    given : PairNumbers
        What `pair_numbers` returned.
    images : function, optional
        From sample ids to their (H, W, C) images; without it there are no galleries and no cards.
    cards : int
        Of how many units there are cards: those of the strongest pairs.

    Returns
    -------
    The pictures, and in words what is missing.
    """
    drawn: list[Picture] = []
    notes: list[str] = []
    with styled():
        if given.norms is not None:
            drawn.append(_norms(given))
        if given.curves:
            drawn.append(_ablation(given))
        if given.ranks is not None:
            drawn.append(_ranks(given))
        if given.change is not None:
            drawn.append(_followed(given))
        if images is not None and given.retrieved:
            try:
                drawn += [_gallery(given, images), *_cards(given, images, cards)]
            except DataError as error:
                notes.append(f"There are no images of pairs: {error}")
    return drawn, notes


def card_picture(
    given: PairNumbers,
    unit: Any,
    images: ImagesById | None,
    *,
    heads: int = 4,
    count: int = 6,
    told: xr.Dataset | None = None,
) -> Picture:
    """Draw the card of a unit; ``told`` are phrases of its codes, in place of the nearest ones.

    Raises
    ------
    SchemaError
        If there is no such unit.
    DataError
        If an image is not there.
    """
    texts = spoken(given.ds) if "text" in given.ds else None
    described = describe_unit(given.ds["scalar"], given.ds, unit, texts=texts, heads=heads, images=count)
    figure = new_figure(card_size(described))
    unit_card(described, images, told=told, figure=figure)
    loudest = ", ".join(str(row) for row in described["row"].to_numpy()[1:])
    caption = (
        f"Unit {unit} at {given.where}: the norm of what it says through each head, and of its loudest ({loudest}) "
        + ("the phrases nearest to it by cosine" if told is None else "the phrases of its code with their weights")
        + " and the images at which it is strongest, with the signed strength."
    )
    return Picture(f"pairs_card_{unit}", f"Card of unit {unit}", caption, caption, figure)


def _norms(given: PairNumbers) -> Picture:
    assert given.norms is not None
    assert given.dead is not None
    figure = new_figure((7.2, 3.8))
    norm_histogram(given.norms, given.dead, ax=figure.add_subplot())
    values = np.asarray(given.norms, np.float64).ravel()
    largest = np.sort(values[np.isfinite(values)])[::-1]
    tenth = largest[: max(1, len(largest) // 10)]
    caption = (
        f"Mean of the {given.top} largest centred contributions of each of {values.size:,} pairs, over "
        f"{given.images:,} images at {given.where}. {int(given.dead.sum()):,} are dead: they say nothing of any image. "
        f"The top 10 % hold {tenth.sum() / largest.sum():.0%} of the sum."
    )
    return Picture("pairs_norms", "How loud pairs are", caption, f"Histogram. {caption}", figure)


def _ablation(given: PairNumbers) -> Picture:
    figure = new_figure((7.2, 5.0))
    classes = given.ds.sizes.get("class", 0)
    ablation_curves(given.curves, chance=1 / classes if classes else None, ax=figure.add_subplot())
    gap = curve_difference(given.curves["pairs"], given.curves["units"], bootstrap=RESAMPLES)
    found = float(gap["difference"].sel(share=0.1))
    low, high = (float(gap[name].sel(share=0.1)) for name in ("low", "high"))
    whole = float(given.curves["pairs"]["accuracy"].sel(share=1.0))
    caption = (
        f"Zero-shot accuracy on {_images(given)}, when only the pairs, or units, with the largest norms vary and the "
        f"others are held at their mean; {whole:.1%} with all. At a share of 10 %, pairs are {100 * found:+.1f} points "
        f"from units (95 %: {100 * low:+.1f} to {100 * high:+.1f}). Bands are bootstrap intervals over images."
    )
    return Picture("pairs_ablation", "Accuracy with few pairs", caption, f"Line plot. {caption}", figure)


def _ranks(given: PairNumbers) -> Picture:
    assert given.ranks is not None
    figure = new_figure((6.4, 4.6))
    reconstruction_curve(given.ranks, ax=figure.add_subplot())
    told = ", ".join(
        f"{float(one['accuracy']):.1%} with {int(one['rank'])}"
        for one in (given.ranks.isel(rank=i) for i in range(given.ranks.sizes["rank"]))
    )
    caption = (
        f"Zero-shot accuracy on {_images(given)} from the first components of each unit: {told}; "
        f"{float(given.ranks['whole']):.1%} as they are. That one direction for each pair gives the same is an "
        "identity, and no finding: a pair's contributions have rank 1 in any network."
    )
    return Picture("pairs_reconstruction", "Reconstruction by rank", caption, f"Line plot. {caption}", figure)


def _followed(given: PairNumbers) -> Picture:
    assert given.change is not None
    pairs = [] if given.strongest is None else strongest_pairs(given.strongest, FOLLOWED)
    worded = pairs if given.history is not None else []
    figure = new_figure((6.6, 4.2 + 2.9 * len(worded)))
    grid: Any = figure.subplots(1 + len(worded), 1, squeeze=False, height_ratios=(3, *[2] * len(worded)))
    direction_turns(given.change, pairs=pairs, ax=grid[0, 0])
    for ax, (unit, head) in zip(grid[1:, 0], worded):
        assert given.history is not None
        words_over_training(given.history.sel(unit=unit, head=head), ax=ax)
    series = schema.series_dim(given.change["cosine"])
    count, first = given.change.sizes[series], given.change[series].to_numpy()[0]
    middle = float(given.change["cosine"].isel({series: 0}).median())
    caption = (
        f"How what pairs write turns through {count:,} checkpoints: the cosine of u with that of the last one; at "
        f"{series} {first} its median is {middle:.2f}. The pairs that are loudest in the end have a line each"
        + (", and below are the phrases that they end near to, in the words of each checkpoint." if worded else ".")
    )
    return Picture("pairs_following", "Pairs through training", caption, f"Line plots. {caption}", figure)


def _gallery(given: PairNumbers, images: ImagesById) -> Picture:
    figure = new_figure(gallery_size(given.retrieved))
    retrieval_gallery(given.retrieved, images, figure=figure)
    caption = (
        f"The images at which the pairs with the largest norms are strongest at {given.where}, no unit twice. Below "
        "each is the signed strength s·‖u‖; above are the phrases nearest to what the pair writes, with their cosines."
    )
    return Picture("pairs_gallery", "What the strongest pairs stand for", caption, caption, figure)


def _cards(given: PairNumbers, images: ImagesById, cards: int) -> list[Picture]:
    if given.strongest is None or "scalar" not in given.ds:
        return []
    if given.ds["scalar"].size > READ:
        return []
    return [card_picture(given, unit, images) for unit, _ in strongest_pairs(given.strongest, cards)]


def _images(given: PairNumbers) -> str:
    of = f" of {given.images:,}, evenly spaced," if given.used < given.images else ""
    return f"{given.used:,} images{of} at {given.where}"
