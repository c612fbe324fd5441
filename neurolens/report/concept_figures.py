"""The key figures of concepts: how many units detect, what was born and died, for how long, and how sure that is."""

import numpy as np
import pandas as pd

from neurolens.plot import ConceptNumbers
from neurolens.plot.concept_lives import counts
from neurolens.plot.concept_survival import median_interval
from neurolens.report.records import FigureTable, KeyFigure


def concept_figures(given: ConceptNumbers) -> list[KeyFigure]:
    """Gather the numbers of a concepts cube, or of adopted tallies, that say most about the run.

    Parameters
    ----------
    given : ConceptNumbers
        What `neurolens.plot.concept_numbers` returned for it.
    """
    last = given.detectors.isel({given.series: -1})
    where = f"at {given.series} {last[given.series].item()}, " if given.series in last.coords else ""
    how = "as adopted" if given.cube == "tallies" else f"{given.rule.reading} reading"
    tau = f"IoU of {given.rule.tau:g}"
    first, again, died, unseen = counts(given.events)
    adopted = "" if given.cube == "concepts" else ", tallies"
    detecting = f"{where}of {given.best.sizes['unit']:,} units; {int(last['total_unique']):,} concepts; {tau}, {how}"
    found = [
        KeyFigure(f"{int(last['total_detectors']):,}", f"detectors{adopted}", detecting),
        KeyFigure(
            f"{int(first.sum()):,}", f"births{adopted}", f"{unseen:,} more were alive when first seen; {tau}, {how}"
        ),
        KeyFigure(f"{int(died.sum()):,}", f"deaths{adopted}", f"of {len(given.events):,} lives; {given.rule}"),
        KeyFigure(f"{int(again.sum()):,}", f"rebirths{adopted}", "lives that follow a death of the same concept"),
    ]
    return found + _lifetime(given, adopted)


def _lifetime(given: ConceptNumbers, adopted: str) -> list[KeyFigure]:
    if "" not in given.survival:
        return []
    median, low, high = median_interval(given.survival[""])[0]
    name = f"median lifetime{adopted}"
    if not np.isfinite(median):
        longest = int(given.survival[""]["time"][-1])
        return [KeyFigure(f"> {longest}", name, "checkpoints: more than half of the lives outlast the record")]
    interval = f"95 %: {low:g} to {high:g}" if np.isfinite(high) else f"95 %: from {low:g}, no upper bound"
    return [KeyFigure(f"{median:g}", name, f"checkpoints, Kaplan–Meier; {interval}")]


def functional_figures(table: pd.DataFrame) -> list[KeyFigure]:
    """Say of how many deaths the unit lost its use for the classes too.

    Parameters
    ----------
    table
        What `neurolens.functional_death` returned.
    """
    known = table["functional_dead"].dropna()
    if known.empty:
        return []
    left = (
        f"less than {100 * float(table.attrs.get('ratio', 0.1)):g} % of the fall of the logit without the unit is left"
    )
    return [KeyFigure(f"{int(known.sum()):,}", "functional deaths", f"of {len(known):,} that were measured: {left}")]


def threshold_table(given: ConceptNumbers) -> FigureTable:
    """Lay out how counts of events depend on the threshold.

    Parameters
    ----------
    given : ConceptNumbers
        What `neurolens.plot.concept_numbers` returned.
    """
    title = "Concepts at other thresholds" + ("" if given.cube == "concepts" else ", adopted tallies")
    caption = (
        "How many lives, rebirths and deaths there are where another IoU counts as detection; every picture and number "
        f"of them on this page is of {given.rule} ({given.reading})."
    )
    lines = []
    for row in given.sensitivity.to_dict("records"):
        here = "" if not np.isclose(row["tau"], given.rule.tau) else " (this page)"
        counted = [f"{int(row[name]):,}" for name in ("lives", "rebirths", "deaths", "alive_at_end")]
        lines.append((f"{row['tau']:g}{here}", *counted))
    return FigureTable(title, caption, ("tau", "lives", "rebirths", "deaths", "alive in the end"), tuple(lines))
