"""The documentation: every public name has its place, and every Python snippet runs."""

import importlib
import inspect
import re
import shlex
from pathlib import Path

import attribution_study
import concept_study
import pytest
from concept_store_cases import write_concepts
from mortality_cases import drawn
from tally_cases import tree

import neurolens
from neurolens import open_run, rows, store
from neurolens.mortality import read_tallies
from neurolens.rows.adopting_logs import adopt_log
from neurolens.rows.adopting_tallies import adopt_tallies
from neurolens.study import load_study
from neurolens.study_files import init_study
from neurolens.units.seed_log import export_dormancy, read_log

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
REFERENCE = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
DOCUMENTED = set(re.findall(r"^::: ([\w.]+)$", REFERENCE, re.M))


def public_names():
    yield from (f"neurolens.{name}" for name in neurolens.__all__ if not inspect.ismodule(getattr(neurolens, name)))
    for module in ("attribution", "mortality", "pairs", "samples", "store", "plot", "report", "units"):
        yield from (f"neurolens.{module}.{name}" for name in importlib.import_module(f"neurolens.{module}").__all__)


def target(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute) if module else importlib.import_module(name)


@pytest.mark.parametrize("name", sorted(set(public_names())))
def test_reference__has_a_place_for_every_public_name(name):
    module, _, attribute = name.rpartition(".")
    listed = {name, module} & DOCUMENTED
    same = [other for other in DOCUMENTED if other.rpartition(".")[2] == attribute and target(other) is target(name)]
    assert listed or same or name == "neurolens.Study", f"{name} has no entry under docs/reference"


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_reference__names_what_exists_and_is_described(name):
    assert target(name).__doc__


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links__lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


COMMANDS = sorted(
    {
        line.partition("  #")[0].strip()
        for page in (ROOT / "README.md", *PAGES)
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
        for line in block.splitlines()
        if line.startswith("neurolens ")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands__are_ones_that_there_are(line):
    from typer.main import get_command

    from neurolens.cli import app

    command, words = get_command(app), shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(line, words)  # fails on an unknown option, and on arguments too many or too few


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a small run, as the pages take it: store.icechunk, demo/store.icechunk, a log, tallies."""
    from neurolens.training import train

    folder = tmp_path_factory.mktemp("pages")
    changes = ("train.epochs=2", "data.label_noise.fraction=0.1", "data.select.count=150", "compute.threads=1")
    study = load_study(init_study(folder / "study.toml"), overrides=changes)
    train(study, progress=False)
    target = rows.open_for_writing(study)
    for cube in rows.cubes(study):
        materials = rows.gather(study, cube)
        rows.run_rows(materials, rows.plan(materials, target).rows, target)
    store.open_store(study.store.url).tag("thesis-v1")
    log = export_dormancy(open_run(study.store.url)["units"].to_dataset(), folder / "log.csv", model="digits")
    adopt_log(read_log(log)[0], store.open_store(folder / "logs.icechunk", create=True), run="digits")
    tallies = read_tallies(tree(folder / "dissection"))
    adopt_tallies(tallies, store.open_store(folder / "published.icechunk", create=True), run="published")
    for seed in (0, 1):
        write_concepts(folder / f"store-seed-{seed}.icechunk", drawn(8, 6, 4, seed), run=f"seed {seed}", spread=0.2)
    (folder / "demo").mkdir()
    (folder / "demo" / "store.icechunk").symlink_to(folder / "store.icechunk")
    text = concept_study.STUDY + "rotations = 1\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        concept_study.run(concept_study.write_study(folder / "demo" / "shapes", checkpoints=5, text=text))
    clusters = attribution_study.write_study(folder / "demo" / "clusters", checkpoints=2, samples=40)
    attribution_study.run_both(clusters, "attributions.images=30", "attributions.block=30")
    return folder


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/how-to/attributions.md",
        "docs/how-to/concepts.md",
        "docs/how-to/query.md",
        "docs/how-to/mislabelled.md",
        "docs/how-to/units.md",
        "docs/how-to/seeds.md",
        "docs/how-to/seed-files.md",
        "docs/how-to/tallies.md",
        "docs/explanation/attribution.md",
        "docs/explanation/mortality.md",
    ],
)
def test_snippets__run_on_a_run(page, trained, monkeypatch):
    monkeypatch.chdir(trained)
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert snippets
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_studies_in_pages__are_valid(page, tmp_path):
    for number, text in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.M | re.S)):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert load_study(path)
