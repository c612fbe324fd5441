"""The pictures of concepts, drawn and captioned: of a concepts cube, or of adopted tallies."""

import numpy as np
import pandas as pd
import xarray as xr

from neurolens import mortality
from neurolens.plot.concept_heatmaps import iou_heatmap, iou_heatmap_size, score_heatmap
from neurolens.plot.concept_lifelines import UNITS, lifelines, lifelines_height
from neurolens.plot.concept_lives import births_and_deaths, counts, cumulative_events, ranking, top_concepts
from neurolens.plot.concept_numbers import ConceptNumbers, LifeRule, concept_numbers
from neurolens.plot.concept_sankey import migration_ribbons
from neurolens.plot.concept_survival import median_interval, survival_curves
from neurolens.plot.concepts import detector_curves, rotation_null
from neurolens.plot.picture import Picture
from neurolens.plot.style import new_figure, styled

TOP = 15
"""How many concepts are ranked."""


def concept_pictures(
    ds: xr.Dataset, *, given: ConceptNumbers | None = None, rule: LifeRule | None = None
) -> list[Picture]:
    """Draw every picture that a concepts cube, or adopted tallies, allow. **Eager**.

    Parameters
    ----------
    ds : the opened concepts cube or the cube of tallies
    given : ConceptNumbers, optional
        What `concept_numbers` returned, if it was computed already.
    rule : LifeRule, optional
        By which concepts live and die, where nothing was given.
    """
    given = given or concept_numbers(ds, rule=rule)
    with styled():
        drawn = [
            _detectors(given),
            _lifelines(given),
            *_events(given),
            _top(given),
            _scores(given),
            *_survival(given),
            *_moves(given),
            *_iou(given),
            *_rotations(given),
        ]
    prefix = "" if given.cube == "concepts" else f"{given.cube}_"
    title = "" if given.cube == "concepts" else ", adopted tallies"
    return [Picture(f"{prefix}{p.name}", f"{p.title}{title}", p.caption, p.alt, p.figure) for p in drawn]


def said(number: int, one: str, many: str = "") -> str:
    """Return a count with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _by(given: ConceptNumbers) -> str:
    return f"{given.rule}; {given.reading}"


def _detectors(given: ConceptNumbers) -> Picture:
    figure = new_figure((11.6, 3.6))
    ax = detector_curves(given.detectors, tau=given.rule.tau, ax=figure.add_subplot(1, 2, 1))
    legend = ax.get_legend()
    if legend is not None:  # that of the other panel serves both
        legend.remove()
    detector_curves(given.detectors, quantity="n_unique", tau=given.rule.tau, ax=figure.add_subplot(1, 2, 2))
    last = given.detectors.isel({given.series: -1})
    where = (
        f"at {given.series} {last[given.series].item()}" if given.series in last.coords else "at the last checkpoint"
    )
    total, units = int(last["total_detectors"]), given.best.sizes["unit"]
    caption = (
        f"{total:,} of {units:,} units detect {said(int(last['total_unique']), 'concept')} {where} "
        f"(IoU of {given.rule.tau:g}; {given.reading})."
    )
    alt = f"Curves by category over the series: detectors, and different concepts among them. {caption}"
    return Picture("concept_detectors", "Units that detect concepts", caption, alt, figure)


def _lifelines(given: ConceptNumbers) -> Picture:
    figure = new_figure((9.4, lifelines_height(given.events)))
    lifelines(given.events, ax=figure.add_subplot())
    units = given.events["unit"].nunique()
    caption = f"{said(len(given.events), 'life', 'lives')} in {said(units, 'unit')}"
    caption += f", the {UNITS} liveliest drawn" if units > UNITS else ""
    caption += f" ({_by(given)})."
    return Picture("concept_lifelines", "Lives of concepts in units", caption, f"A bar per life. {caption}", figure)


def _events(given: ConceptNumbers) -> list[Picture]:
    first, again, died, unseen = counts(given.events)
    caption = (
        f"{said(int(first.sum()), 'birth')}, {said(int(again.sum()), 'rebirth')} and {said(int(died.sum()), 'death')}; "
        f"{unseen:,} alive when first seen ({_by(given)})."
    )
    drawn = []
    for name, title, draw in (
        ("concept_events", "Births and deaths at each checkpoint", births_and_deaths),
        ("concept_events_so_far", "Births and deaths so far", cumulative_events),
    ):
        figure = new_figure((6.6, 3.6))
        draw(given.events, ax=figure.add_subplot())
        drawn.append(Picture(name, title, caption, f"{title}, over the series. {caption}", figure))
    return drawn


def _top(given: ConceptNumbers) -> Picture:
    named = "concept" in given.events
    ranked = ranking(given.events, "deaths") if named else pd.DataFrame()
    shown = min(TOP, len(ranked))
    figure = new_figure((7.0, max(2.4, 1.3 + 0.24 * shown)))
    events = given.events if named else given.events.assign(concept="")
    top_concepts(events, count=TOP, ax=figure.add_subplot())
    first = f"{ranked['concept'].iloc[0]} most often" if shown else ""
    caption = f"{said(len(ranked), 'concept')} died in some unit, {first}" if shown else "No concept died"
    caption += f" ({_by(given)})."
    return Picture("concept_top", "Concepts that die most often", caption, f"Bars. {caption}", figure)


def _survival(given: ConceptNumbers) -> list[Picture]:
    if not given.survival:
        return []
    panels = len(given.survival)
    rows, columns = (panels + 1) // 2, min(panels, 2)
    figure = new_figure((5.6 * columns, 4.2 * rows))
    for i, curves in enumerate(given.survival.values()):
        survival_curves(curves, ax=figure.add_subplot(rows, columns, i + 1))
    caption = f"{lifetime(given)} Bands are of 95 %, at each time by itself; lives of one unit are not independent."
    for name in given.survival:
        if name:
            p = float(mortality.logrank(given.events, by=name)["p_value"].iloc[0])
            caption += f" By {name}: log-rank p = {p:.2g}." if np.isfinite(p) else ""
    alt = f"Kaplan–Meier curves with numbers at risk. {caption}"
    return [Picture("concept_survival", "How long concepts live", caption, alt, figure)]


def lifetime(given: ConceptNumbers) -> str:
    """Say what the median lifetime is, with its interval, or that it is not reached."""
    median, low, high = median_interval(given.survival[""])[0]
    if not np.isfinite(median):
        return "More than half of the lives outlast the record, as far as it tells."
    upper = f"{high:g}" if np.isfinite(high) else "beyond the record"
    interval = f" (95 %: {low:g} to {upper})" if np.isfinite(low) else ""
    return f"Half of the lives last at most {median:g} checkpoint{'s' * (median != 1)}{interval}."


def _scores(given: ConceptNumbers) -> Picture:
    figure = new_figure((6.6, float(np.clip(1.8 + 0.05 * given.best.sizes["unit"], 3.2, 6.4))))
    score_heatmap(given.best, tau=given.rule.tau, ax=figure.add_subplot())
    caption = f"Units in order of layer, then of when they first reach an IoU of {given.rule.tau:g} ({given.reading})."
    title = "Best IoU of every unit"
    return Picture("concept_scores", title, caption, f"Heatmap, a row per unit. {caption}", figure)


def _iou(given: ConceptNumbers) -> list[Picture]:
    if given.iou is None:
        return []
    figure = new_figure(iou_heatmap_size(given.iou, tau=given.rule.tau))
    iou_heatmap(given.iou, tau=given.rule.tau, ax=figure.add_subplot())
    caption = f"Units in the order of their best concept, concepts by category; the last checkpoint ({given.reading})."
    alt = f"Heatmap of units by concepts. {caption}"
    return [Picture("concept_iou", "What detectors answer to", caption, alt, figure)]


def _moves(given: ConceptNumbers) -> list[Picture]:
    if given.moves is None or "destinations" not in given.moves:
        return []
    moves = given.moves
    figure = new_figure((8.2, 4.4))
    migration_ribbons(moves, units=given.best, level=given.level, ax=figure.add_subplot())
    taken = int((moves["n_destinations"] > 0).sum()) if len(moves) else 0
    caption = (
        f"Of {said(len(moves), 'death')}, {taken:,} had another unit take the concept up within "
        f"{moves.attrs['window']} checkpoints ({_by(given)})."
    )
    alt = f"Ribbons from where concepts died to where they were taken up. {caption}"
    return [Picture("concept_migrations", "Where concepts go that die", caption, alt, figure)]


def _rotations(given: ConceptNumbers) -> list[Picture]:
    if given.rotated is None:
        return []
    figure = new_figure((6.4, 3.6))
    score = given.best["score"].isel({given.series: -1})
    rotation_null(score, given.rotated, tau=given.rule.tau, ax=figure.add_subplot())
    above = (given.rotated >= given.rule.tau).sum("unit")
    caption = (
        f"{int((score >= given.rule.tau).sum()):,} units are detectors at the last checkpoint; after a random rotation "
        f"of the units of each layer {float(above.mean()):.1f} are, on average over {len(above)}."
    )
    alt = f"Share of units above each IoU, of units and of rotated units. {caption}"
    return [Picture("concept_rotations", "Units against rotated units", caption, alt, figure)]
