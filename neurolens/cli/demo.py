"""The command ``demo``: three small runs from nothing, measured, drawn and reported."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from neurolens.cli.console import ROWS_FAILED, console, say
from neurolens.cli.drawing import save_pictures, save_report
from neurolens.cli.running import run_studies

if TYPE_CHECKING:
    from neurolens.study import Study

PICTURES = 900
"""How many pictures of shapes are made."""
ASK = (
    "n.csl(r['samples'].to_dataset()).compute()",
    "n.dormancy_summary(r['units'].to_dataset(), 'redo', tau=[0.025, 0.1]).pooled_fraction.compute()",
    "n.spectra(r['activations'].to_dataset()).effective_rank.compute()",
)
"""What the demo says can be asked of the digits: of samples, of units and of activations."""
ASK_CONCEPTS = (
    "n.detectors(r['concepts'].to_dataset(), tau=0.08).n_detectors.to_pandas()",
    "n.concept_events(n.iou(r['concepts'].to_dataset()), tau=0.08).head(20)",
)
"""And of the shapes."""


ASK_CLUSTERS = (
    "n.filtered_summary(r['attributions'].to_dataset(), scores=['drop']).isel(epoch=-1).to_dataframe()"
    "[['drop_mean', 'drop_low', 'drop_high']]",
)
"""And of the digits' clusters of units."""


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the studies and all they make.")] = Path("demo"),
) -> None:
    """Show it all: train on digits and on generated shapes, measure every checkpoint, and leave stores and reports.

    Of the digits, what is learned when, which units fall silent, and what clusters of units carry of an answer; of the
    shapes, which concepts units come to detect, and lose again.
    """
    began = time.perf_counter()
    files = {
        "digits": folder / "study.toml",
        "shapes": folder / "shapes" / "study.toml",
        "digits_clusters": folder / "clusters" / "study.toml",
    }
    studies = {name: _study(name, path) for name, path in files.items()}
    outcome = run_studies(list(studies.values()))
    for name, study in studies.items():
        home = files[name].parent
        page = home / "report.html"
        if outcome.computed or outcome.epochs or not page.exists():
            say(f"drawing {name}")
            save_pictures(study.store, home / "plots", study)
            save_report(study.store, page, study, str(files[name]))
    seconds = time.perf_counter() - began
    say(f"{outcome.summary} in {seconds:.0f} s")
    table = Table.grid(padding=(0, 2))
    for name, study in studies.items():
        home = files[name].parent
        places = {
            "study": files[name],
            "store": study.store.url,
            "plots": home / "plots",
            "report": home / "report.html",
        }
        for what, place in places.items():
            table.add_row(f"[bold]{name}[/]" if what == "study" else "", what, escape(str(place)))
    console.print(table)
    _try_next(files, {name: study.store.url for name, study in studies.items()})
    if outcome.failed:
        raise typer.Exit(ROWS_FAILED)


def _study(name: str, path: Path) -> "Study":
    """Load the study of a template; write it, and make its pictures, where they are not there yet."""
    from neurolens.data.shapes import make_concepts
    from neurolens.study import load_study
    from neurolens.study_files import init_study

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        init_study(path, name)
        say(f"wrote {path}")
    study = load_study(path)
    if study.concepts is not None and not study.concepts.root.exists():
        made = make_concepts(study.concepts.root, n=PICTURES)
        say(f"wrote {PICTURES} pictures to {made}")
    return study


def _try_next(files: Mapping[str, Path], stores: Mapping[str, str]) -> None:
    console.print("\n[bold]try next[/]")
    digits, shapes, clusters = files["digits"], files["shapes"], files["digits_clusters"]

    def ask(name: str, code: str) -> str:
        return f"python -c \"import neurolens as n; r = n.open_run('{stores[name]}'); print({code})\""

    for line in (
        f"neurolens status {digits}",
        f"neurolens show {digits}",
        f"neurolens run {digits}                     # again: computes nothing",
        f"neurolens run {digits} --set samples.curvature=true   # computes that part only",
        f"neurolens layers {digits}                  # where units are; layers in [units] chooses",
        f"neurolens export dormancy {digits} {digits.parent / 'dormancy.csv'}   # a log of dormant units",
        *(ask("digits", code) for code in ASK),
        "",
        f"neurolens gallery {shapes}          # what the strongest detectors see",
        f"neurolens gallery {shapes} --layer block4 --index 14 --at 0,1,5,20   # one unit over the training",
        f"neurolens export events {shapes} {shapes.parent / 'events'}   # births and deaths, as tables",
        *(ask("shapes", code) for code in ASK_CONCEPTS),
        "",
        f"neurolens run {clusters} --set 'clusters.k=[2,3,4]'   # computes the sets of k = 4 only",
        f"neurolens export attributions {clusters} {clusters.parent / 'files'}   # as the reference's files",
        *(ask("digits_clusters", code) for code in ASK_CLUSTERS),
    ):
        say(f"  {line}" if line else "")
