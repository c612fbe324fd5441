"""The key figures of units and heads, and a section that says whether they add up, and what the loudest pairs say."""

import numpy as np

from neurolens.plot import PairNumbers, RunPictures
from neurolens.report.records import Fact, FigureTable, KeyFigure, Section

PICTURES = "pairs_"
"""How names of pictures begin that the section shows."""


def pair_figures(given: PairNumbers) -> list[KeyFigure]:
    """Gather the numbers of the cubes of pairs that say most about the run.

    Parameters
    ----------
    given : PairNumbers
        What `neurolens.plot.pair_numbers` returned for them.
    """
    units, heads = given.ds.sizes["unit"], given.ds.sizes["head"]
    found = [KeyFigure(f"{units * heads:,}", "pairs", f"{units:,} units × {heads:,} heads at {given.where}")]
    if np.isfinite(given.residual):
        meaning = f"largest of {given.images:,} images: pairs, added up, against the embedding"
        found.append(KeyFigure(f"{given.residual:.1e}", "residual of completeness", meaning))
    if given.dead is not None:
        found.append(KeyFigure(f"{int(given.dead.sum()):,}", "dead pairs", "they say nothing of any image"))
    if given.curves:
        pairs, units_only = (given.curves[name]["accuracy"] for name in ("pairs", "units"))
        meaning = f"on {given.used:,} images"
        found.append(KeyFigure(f"{float(pairs.sel(share=1.0)):.1%}", "zero-shot accuracy", meaning))
        meaning = f"and with a tenth of the units {float(units_only.sel(share=0.1)):.1%}"
        found.append(KeyFigure(f"{float(pairs.sel(share=0.1)):.1%}", "with a tenth of the pairs", meaning))
    return found


def pair_section(drawn: RunPictures) -> Section | None:
    """Say of units and heads what is known of their pairs; None where there are none.

    Parameters
    ----------
    drawn : RunPictures
        What `neurolens.plot.run_pictures` returned.
    """
    given = drawn.pairs
    if given is None:
        return None
    facts = [_completeness(given), *_dead(given), *_signs(given), *_identity(given), *_sinks(given)]
    tables = [strongest_table(given)] if given.strongest is not None and given.strongest.sizes["pair"] else []
    shown = tuple(picture for picture in drawn.pictures if picture.name.startswith(PICTURES))
    return Section("Units and heads", "pairs", tuple(facts), tuple(tables), shown)


def strongest_table(given: PairNumbers) -> FigureTable:
    """Lay out the pairs with the largest norms, and the phrases that they say.

    Parameters
    ----------
    given : PairNumbers
        What `neurolens.plot.pair_numbers` returned.
    """
    assert given.strongest is not None
    worded, coded = "phrase" in given.strongest, "code" in given.strongest
    header = ("unit", "head", "norm", "sign", *(["nearest phrases"] if worded else []), *(["code"] if coded else []))
    lines = []
    for i in range(given.strongest.sizes["pair"]):
        one = given.strongest.isel(pair=i)
        cells = [str(one["unit"].item()), str(one["head"].item()), f"{float(one['norm']):.3g}"]
        cells.append(_sign(given, int(one["unit_at"]), int(one["head_at"])))
        for name, number in (("phrase", "score"), ("code", "weight")):
            if name in one:
                told = zip(one[name].to_numpy(), one[number].to_numpy())
                cells.append(", ".join(f"{phrase} {value:+.2f}" for phrase, value in told if phrase))
        lines.append(tuple(cells))
    caption = f"Pairs with the largest mean of the {given.top} largest centred contributions, at {given.where}."
    caption += " Phrases are the nearest to what the pair writes when its unit fires, by cosine." if worded else ""
    caption += " Codes are sums of few phrases that its direction is told as, the largest first." if coded else ""
    return FigureTable("The loudest pairs", caption, header, tuple(lines))


def _completeness(given: PairNumbers) -> Fact:
    if not np.isfinite(given.residual):
        return Fact("completeness", "It was not stored whether all pairs add up to the embeddings.")
    return Fact(
        "completeness",
        f"Contributions of all pairs, added up, are the embeddings of {given.images:,} images at {given.where} to "
        f"within {given.residual:.1e} of their length, at worst. That is checked at every image that is measured.",
    )


def _dead(given: PairNumbers) -> list[Fact]:
    if given.dead is None:
        return []
    dead, every = int(given.dead.sum()), given.dead.size
    whole = int(given.dead.all("head").sum())
    return [
        Fact(
            "dead pairs",
            f"{dead:,} of {every:,} ({dead / every:.2%}) say nothing of any of these images: the vector is 0, or the "
            f"scalar does not vary. {whole:,} units are dead through all heads.",
        )
    ]


def _signs(given: PairNumbers) -> list[Fact]:
    if given.signs is None or given.dead is None:
        return []
    live = ~np.asarray(given.dead, bool)
    signs = np.asarray(given.signs)[live]
    return [
        Fact(
            "signs of directions",
            f"A direction is that of u, what the unit adds when it fires. By the majority of the {given.top} images "
            f"with the largest contributions, the reference's rule, {int((signs < 0).sum()):,} of {signs.size:,} live "
            f"pairs would be turned round, and {int((signs == 0).sum()):,} are tied: there its sign is arbitrary.",
        )
    ]


def _identity(given: PairNumbers) -> list[Fact]:
    if not given.curves and given.ranks is None:
        return []
    return [
        Fact(
            "one direction a pair",
            "Contributions of a pair have rank 1 in any network, trained or not: that its one direction gives the "
            "accuracy of the embeddings is an identity. Components of units, and curves of ablation, are findings.",
        )
    ]


def _sinks(given: PairNumbers) -> list[Fact]:
    if given.sinks is None:
        return []
    where = np.argwhere(np.asarray(given.sinks["sink"]))
    if not len(where):
        return [Fact("attention sinks", "No head gives one token more than half of its attention on average.")]
    label = given.sinks["head"].to_numpy() if "head" in given.sinks.coords else np.arange(given.sinks.sizes["head"])
    told = ", ".join(f"head {label[head]} at token {token}" for head, token in where[:6])
    more = f" and {len(where) - 6} more" if len(where) > 6 else ""
    return [
        Fact(
            "attention sinks",
            f"More than half of the attention goes to one token whatever the image shows: {told}{more}. Token 0 is the "
            "one that asks; the last is the bottom-right patch.",
        )
    ]


def _sign(given: PairNumbers, unit: int, head: int) -> str:
    if given.signs is None:
        return ""
    return {1: "+u", -1: "−u", 0: "tied"}[int(given.signs.isel(unit=unit, head=head))]
