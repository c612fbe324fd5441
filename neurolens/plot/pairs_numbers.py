"""What is drawn and told of the cubes of pairs: numbers of one checkpoint, within what a laptop reads in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import MissingMeasurementError
from neurolens.pairs.ablation import ablation_curve
from neurolens.pairs.norms import dead_pairs, majority, pair_norms
from neurolens.pairs.opened import at, codes_at
from neurolens.pairs.ranks import RANKS, rank_curve
from neurolens.pairs.retrieval import retrieve, sinks
from neurolens.pairs.strength import unit_norms
from neurolens.pairs.text import text_scores
from neurolens.plot.pairs_following import FOLLOWED, follow, largest_set
from neurolens.sparse_codes.reading import describe

Array = npt.NDArray[Any]

CUBES = ("pools", "pairs", "texts", "codes")
READ = 2**29
"""Scalars that are read from the store for curves, cards and sinks: 2 GB. Of larger cubes these are left out."""
HELD = 2**25
"""Scalars of which curves are made: so many images, evenly spaced, that memory stays below a few hundred MB."""
WEIGHED = 2**26
"""Numbers that components of units are multiplied with: of larger pools the highest ranks are left out."""
LARGE = ("scalar", "patch", "mean_token", "positional", "attention", "embedding")
"""What is read only as far as it is used."""
TOP, STRONGEST, STRIPS, PHRASES, IMAGES = 50, 12, 4, 3, 10
DRAWS, RESAMPLES = 3, 500


@dataclass(frozen=True)
class PairNumbers:
    """What is drawn of the cubes of pairs, at the last checkpoint that they all have.

    Attributes
    ----------
    ds : Dataset
        What `neurolens.pairs.at` returns; lazy.
    where : str
        The checkpoint, in words.
    images : int
        How many the numbers are of.
    residual : float
        The largest distance of an image's contributions, added up, to its embedding, over the length of that; NaN where
        it was not measured.
    norms, dead, signs : (unit, head), or None
        Mean of the ``top`` largest centred contributions; which pairs say nothing; on which side of their mean more
        than half of these are, 0 a tie. None where neither totals nor scalars are there.
    top : int
    strongest : Dataset over ``pair``, or None
        ``unit``, ``head``, ``norm``; with phrases ``phrase`` and ``score`` (pair, place), the nearest ones of the
        largest set; with codes ``code`` and ``weight`` (pair, atom), those that its code has most of.
    retrieved : Dataset by pair
        The images at which the strongest pairs of different units are strongest, by what stands above them.
    curves : Dataset by name
        ``pairs`` and ``units`` of `ablation_curve`; empty where they were not made.
    ranks : Dataset, or None
        Of `rank_curve`.
    used : int
        Images that curves are made of.
    sinks : Dataset, or None
        Of `sinks`.
    change, history : Dataset, or None
        Of `direction_change`, all pairs; and of `text_history`, the units and heads of the strongest: over checkpoints,
        where there are several.
    notes : tuple of str
        What is missing, in words.
    """

    ds: xr.Dataset
    where: str
    images: int
    residual: float
    norms: xr.DataArray | None
    dead: xr.DataArray | None
    signs: xr.DataArray | None
    top: int
    strongest: xr.Dataset | None
    retrieved: Mapping[str, xr.Dataset]
    curves: Mapping[str, xr.Dataset]
    ranks: xr.Dataset | None
    used: int
    sinks: xr.Dataset | None
    change: xr.Dataset | None
    history: xr.Dataset | None
    notes: tuple[str, ...]


def pair_numbers(
    cubes: Mapping[str, xr.Dataset] | xr.DataTree,
    *,
    epoch: int | None = None,
    step: int | None = None,
    accuracy: bool = True,
) -> PairNumbers:
    """Gather what is drawn of the cubes of pairs at one checkpoint. **Eager**.

    Norms, dead pairs, signs and the strongest images are those of the totals, where the store has them: no scalar is
    read then. Curves are made of up to 2²⁵ scalars, and where more than 2²⁹ would have to be read, are left out.

    Parameters
    ----------
    cubes : Dataset by name, or the opened run
        `pools`, and of `pairs`, `texts` and `codes` those that there are.
    epoch, step : int, optional
        The checkpoint; by default the last one that these cubes have.
    accuracy : bool
        Make the curves of accuracy, where there are phrases for the classes.

    Raises
    ------
    MissingMeasurementError
        If there are no pools, or a cube was not measured at the checkpoint asked for.
    """
    held = {name: cubes[name] for name in CUBES if name in (cubes if isinstance(cubes, Mapping) else cubes.children)}
    tree = xr.DataTree.from_dict({n: c.to_dataset() if isinstance(c, xr.DataTree) else c for n, c in held.items()})
    ds, notes = _opened(tree, epoch, step)
    series = str(ds.attrs.get("series") or "epoch")
    position = int(ds[series]) if series in ds.coords else None
    whole = ds.assign({name: ds[name].compute() for name in ds.data_vars if name not in LARGE})
    count = int(whole["count"]) if "count" in whole else whole.sizes.get("sample", 0)
    norms = dead = signs = None
    top = min(TOP, count, whole.sizes.get("rank", TOP))
    if top and ("top" in whole or "scalar" in whole):
        told = whole.drop_vars("scalar", errors="ignore") if "top" in whole else whole
        norms = pair_norms(told, whole, top=top).mean("rank").compute()
        dead, signs = dead_pairs(told, whole).compute(), majority(told, whole, top=top).compute()
    strongest, retrieved = None, {}
    if norms is not None:
        strongest = _strongest(whole, norms)
        strongest, notes = _coded(strongest, tree, {series: position}, notes)
        retrieved = _retrieved(whole, strongest)
    pairs = [] if strongest is None else strongest_pairs(strongest, FOLLOWED)
    change, history = follow(tree, pairs)
    small, notes = _small(whole, notes)
    curves, ranks, more = _curves(small if accuracy else None)
    return PairNumbers(
        ds=whole,
        where=f"{series} {position}" if position is not None else "",
        images=count,
        residual=_residual(whole),
        norms=norms,
        dead=dead,
        signs=signs,
        top=top,
        strongest=strongest,
        retrieved=retrieved,
        curves=curves,
        ranks=ranks,
        used=small.sizes.get("sample", 0) if small is not None else 0,
        sinks=sinks(whole["attention"]).compute() if small is not None and "attention" in whole else None,
        change=change,
        history=history,
        notes=(*notes, *more),
    )


def strongest_pairs(strongest: xr.Dataset, count: int) -> list[tuple[int, int]]:
    """Return the labels of the strongest pairs, no unit twice."""
    found: dict[int, int] = {}
    for unit, head in zip(strongest["unit"].to_numpy().tolist(), strongest["head"].to_numpy().tolist()):
        found.setdefault(unit, head)
    return list(found.items())[:count]


def spoken(ds: xr.Dataset) -> xr.DataArray:
    """Return the embeddings (phrase, feature) that pairs are told in: of several sets of phrases the largest.

    Another set, as the classes, may say the same things in other words, and all of them twice.
    """
    texts = ds["text"].transpose("phrase", "feature")
    if "set" not in ds.coords:
        return texts
    sets = [str(name) for name in ds["set"].to_numpy().tolist()]
    largest = largest_set(sets)
    return texts.isel(phrase=[i for i, name in enumerate(sets) if name == largest])


def class_texts(ds: xr.Dataset) -> xr.DataArray | None:
    """Return the embeddings (class, feature) of the images' classes, in order; None where no set has all of them.

    Of several sets the one with the fewest other phrases is taken.
    """
    if "text" not in ds or "class" not in ds.coords or "words" not in ds.coords or "label" not in ds.coords:
        return None
    names = [str(name) for name in ds["class"].to_numpy()]
    words, sets = ([str(one) for one in ds[name].to_numpy()] for name in ("words", "set"))
    found: dict[str, dict[str, int]] = {}
    for place, (one, word) in enumerate(zip(sets, words)):
        found.setdefault(one, {}).setdefault(word, place)
    fit = [known for known in found.values() if set(names) <= set(known)]
    if not fit or not names:
        return None
    known = min(fit, key=len)
    rows = ds["text"].transpose("phrase", "feature").isel(phrase=[known[name] for name in names])
    return xr.DataArray(rows.to_numpy(), dims=("class", "feature"), coords={"class": names})


def _opened(tree: xr.DataTree, epoch: int | None, step: int | None) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Open one checkpoint of as many of the cubes as have one in common."""
    there = [name for name in ("pools", "pairs", "texts") if name in tree.children]
    if "pools" not in there:
        raise MissingMeasurementError(
            f"the run holds {', '.join(tree.children) or 'none of the cubes of pairs'}, and not the pools, which say "
            "what units write through heads; measure them: `neurolens run STUDY --only pools`"
        )
    try:
        return at(tree, epoch=epoch, step=step, cubes=there), ()
    except MissingMeasurementError as error:
        if len(there) == 1 or epoch is not None or step is not None:
            raise
        return at(tree, cubes=("pools",)), (f"Pairs are told by their totals only: {error}",)


def _small(ds: xr.Dataset, notes: tuple[str, ...]) -> tuple[xr.Dataset | None, tuple[str, ...]]:
    """Return as many images as curves are made of, evenly spaced and read; None where it would take too long."""
    if "scalar" not in ds:
        return None, notes
    pairs = ds.sizes["unit"] * ds.sizes["head"]
    if ds.sizes["sample"] * pairs > READ:
        return None, (
            *notes,
            f"Curves of {ds.sizes['sample']:,} images × {pairs:,} pairs would read more than {READ * 4 // 2**30} GB, "
            "and are left out; make them of some images: pairs.ablation_curve(ds['scalar'].isel(sample=…), ds, …).",
        )
    images = ds.sizes["sample"]
    chosen = np.unique(np.linspace(0, images - 1, max(1, min(images, HELD // pairs))).round().astype(int))[:images]
    few = ds.drop_vars([name for name in ds.data_vars if name not in ("scalar", "value", "output", "constant", "text")])
    return few.isel(sample=chosen).compute(), notes


def _curves(
    ds: xr.Dataset | None,
) -> tuple[dict[str, xr.Dataset], xr.Dataset | None, tuple[str, ...]]:
    if ds is None or not ds.sizes["sample"]:
        return {}, None, ()
    texts = class_texts(ds)
    if texts is None:
        return (
            {},
            None,
            (
                "There are no curves of accuracy: no set of [texts] has all classes of the images as its phrases "
                '(known = "classes" is such a set).',
            ),
        )
    labels = ds["label"].to_numpy().astype(int)
    if not len(labels) or labels.min() < 0 or labels.max() >= texts.sizes["class"]:
        return {}, None, ("There are no curves of accuracy: not every image has a label.",)
    top = min(TOP, ds.sizes["sample"])
    scores = {
        "pairs": pair_norms(ds["scalar"], ds, top=top),
        "units": unit_norms(ds["scalar"], ds, top=top),
    }
    curves = {
        name: ablation_curve(ds["scalar"], ds, texts, labels, score=score, baselines=DRAWS, bootstrap=RESAMPLES)
        for name, score in scores.items()
    }
    heads = ds.sizes["head"]
    width = ds.sizes["unit"] * (heads * ds.sizes["d"] + ds.sizes["feature"])
    fit = [rank for rank in RANKS if rank <= heads and rank * width <= WEIGHED]
    return curves, rank_curve(ds["scalar"], ds, texts, labels, ranks=fit) if fit else None, ()


def _strongest(ds: xr.Dataset, norms: xr.DataArray) -> xr.Dataset:
    """Return the pairs with the largest norms, and the phrases nearest to each."""
    values = norms.transpose("unit", "head").to_numpy()
    order = np.argsort(-np.where(np.isfinite(values), values, -1), axis=None, kind="stable")[:STRONGEST]
    units, heads = np.unravel_index(order[values.ravel()[order] > 0], values.shape)
    labels = {
        name: norms[name].to_numpy() if name in norms.coords else np.arange(norms.sizes[name]) for name in norms.dims
    }
    out = xr.Dataset(
        {
            "unit": ("pair", labels["unit"][units]),
            "head": ("pair", labels["head"][heads]),
            "norm": ("pair", values[units, heads]),
        }
    )
    out = out.assign_coords(unit_at=("pair", units), head_at=("pair", heads))
    if "text" not in ds or not len(units):
        return out
    texts, fixed = spoken(ds), ds[["value", "output", "constant"]]
    count = min(PHRASES, texts.sizes["phrase"])
    words, nearest = _blank(len(units), count)
    every = texts["words" if "words" in texts.coords else "phrase"].to_numpy()
    for i, (unit, head) in enumerate(zip(units, heads)):
        scores = text_scores(fixed.isel(unit=[unit], head=[head]), texts).to_numpy().ravel()
        best = np.argsort(-scores, kind="stable")[:count]
        words[i], nearest[i] = every[best].astype(object), scores[best]
    out["phrase"], out["score"] = (("pair", "place"), words), (("pair", "place"), nearest)
    return out


def _coded(
    strongest: xr.Dataset, tree: xr.DataTree, position: dict[str, Any], notes: tuple[str, ...]
) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Add the phrases that codes of the strongest pairs have most of."""
    if "codes" not in tree.children or not strongest.sizes["pair"]:
        return strongest, notes
    try:
        codes = codes_at(tree, **position)
    except MissingMeasurementError as error:
        return strongest, (*notes, f"Pairs have no codes: {error}")
    if "phrase" not in codes.coords:
        return strongest, notes
    place = {
        name: xr.DataArray(codes.indexes[name].get_indexer(strongest[name].to_numpy()), dims="pair")
        for name in ("unit", "head")
    }
    few = codes[["index", "value"]].isel(place).drop_vars(["unit", "head"]).compute()
    told = describe(few, codes["phrase"], top=min(PHRASES, codes.sizes["atom"]))
    strongest["code"], strongest["weight"] = (
        (("pair", "atom"), told[name].transpose("pair", "atom").to_numpy()) for name in ("phrase", "value")
    )
    return strongest, notes


def _blank(pairs: int, count: int) -> tuple[Array, Array]:
    return np.full((pairs, count), "", object), np.full((pairs, count), np.nan)


def _retrieved(ds: xr.Dataset, strongest: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the images at which the strongest pairs of different units are strongest."""
    found: dict[str, xr.Dataset] = {}
    labels = list(zip(strongest["unit"].to_numpy().tolist(), strongest["head"].to_numpy().tolist()))
    for unit, head in strongest_pairs(strongest, STRIPS):
        one = strongest.isel(pair=labels.index((unit, head)))
        name = f"unit {unit}, head {head}"
        if "phrase" in one:
            said = zip(one["phrase"].to_numpy(), one["score"].to_numpy())
            name += ": " + ", ".join(f"{phrase} {score:+.2f}" for phrase, score in said)
        images = strongest_images(ds, int(one["unit_at"]), int(one["head_at"]))
        if images.sizes["rank"]:
            found[name] = images
    return found


def strongest_images(ds: xr.Dataset, unit: int, head: int, *, k: int = IMAGES) -> xr.Dataset:
    """Return the images at which a pair is strongest, by its signed strength: of the totals, else of the scalars.

    Parameters
    ----------
    ds : Dataset
        What `neurolens.pairs.at` returned.
    unit, head
        Positions.

    Returns
    -------
    Dataset over ``rank``
        As of `neurolens.pairs.retrieve`; no more than ``k`` images, and none where there are neither.
    """
    totals = {"count", "mean", "std", "top", "bottom", "top_sample"} <= {*ds}
    if not totals and "scalar" not in ds:
        return xr.Dataset({"strength": ("rank", []), "position": ("rank", np.zeros(0, int))})
    one = ds.drop_vars([name for name in LARGE if name in ds and (totals or name != "scalar")])
    one = one.isel(unit=[unit], head=[head]).drop_vars(["unit", "head"], errors="ignore").compute()
    images = min(int(one["count"]), one.sizes["rank"]) if totals else one.sizes["sample"]
    return retrieve(one if totals else one["scalar"], one, unit=0, head=0, k=min(k, images))


def _residual(ds: xr.Dataset) -> float:
    if "completeness" in ds:
        return float(ds["completeness"].max())
    return float(ds["worst_residual"]) if "worst_residual" in ds else float("nan")
