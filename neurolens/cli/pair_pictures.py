"""Units and heads, looked at one by one: ``card``, ``retrieve`` and ``export images``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurolens.cli.console import Profile, Run, Seed, require_picture, say
from neurolens.errors import MissingMeasurementError, StudyError, nearest

if TYPE_CHECKING:
    import xarray as xr

    from neurolens.plot.pairs_images import ImagesById

Epoch = Annotated[int | None, typer.Option("--epoch", help="Default: the last one measured.")]
Step = Annotated[int | None, typer.Option("--step", help="The same, of runs that go by step.")]
Units = Annotated[list[int] | None, typer.Option("--unit", "-u", help="A unit, by its number; may be repeated.")]
Norm = Annotated[
    bool, typer.Option("--norm", help="Rank by the length of what is added, biases included, as the reference does.")
]


def card(
    run: Run,
    unit: Units = None,
    heads: Annotated[int, typer.Option("--heads", min=1, help="How many of the loudest heads have a row.")] = 4,
    images: Annotated[int, typer.Option("--images", min=1, help="Images of each row.")] = 6,
    codes: Annotated[bool, typer.Option("--codes", help="Phrases of sparse codes, not the nearest ones.")] = False,
    epoch: Epoch = None,
    step: Step = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default: plots, as of `plot`.")] = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Draw the card of a unit: its norm through each head, and the phrases and images of its loudest heads.

    Without a unit, those of the loudest pairs. Images need the study as RUN.
    """
    folder, tree, load = _opened(run, out, profile, seed)
    import matplotlib as mpl

    mpl.use("agg")
    from neurolens.pairs.opened import codes_at
    from neurolens.plot.pairs_numbers import pair_numbers, strongest_pairs
    from neurolens.plot.pairs_pictures import card_picture
    from neurolens.sparse_codes import describe

    given = pair_numbers(tree, epoch=epoch, step=step, accuracy=False)
    if "scalar" not in given.ds:
        raise MissingMeasurementError(
            "the run holds no scalars, and a card shows the images of a unit; measure them: `neurolens run STUDY "
            "--only pairs`"
        )
    wanted = list(unit or ())
    if not wanted and given.strongest is not None:
        wanted = [one for one, _ in strongest_pairs(given.strongest, 2)]
    told = None
    if codes:
        series = "step" if given.ds.attrs.get("series") == "step" else "epoch"
        told = codes_at(tree, **{series: int(given.ds[series])})
        if "phrase" not in told.coords:
            raise MissingMeasurementError("the store does not hold the phrases of the codes; run the study again")
    for one in wanted:
        described = None if told is None else describe(told.sel(unit=one).compute(), told["phrase"], top=8)
        picture = card_picture(given, one, load, heads=heads, count=images, told=described)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{picture.name}.png"
        picture.figure.savefig(path, dpi=150)
        say(f"wrote {path}")


def retrieve(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    unit: Units = None,
    head: Annotated[list[int] | None, typer.Option("--head", help="Through this head only; may be repeated.")] = None,
    phrase: Annotated[list[str] | None, typer.Option("--phrase", help="A phrase of the study's texts.")] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="How many.")] = 10,
    norm: Norm = False,
    epoch: Epoch = None,
    step: Step = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The picture; default: retrieved.png by STUDY.")
    ] = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Show the images at which units, pairs of a unit and a head, or phrases are strongest, with the strength."""
    if head and not unit:
        raise StudyError("--head goes with a unit; name it with --unit")
    if not unit and not phrase:
        raise StudyError("name what to look for: --unit 37, --unit 37 --head 2, or --phrase 'a dog'")
    if norm and phrase:
        raise StudyError("--norm is of units; a phrase is looked for by what its pairs add to its logit")
    page = out or study.parent / "retrieved.png"
    require_picture("--out", page)
    _, tree, load = _opened(str(study), None, profile, seed)
    assert load is not None
    import matplotlib as mpl

    mpl.use("agg")
    from neurolens import pairs
    from neurolens.plot.pairs_images import gallery_size, retrieval_gallery
    from neurolens.plot.style import new_figure

    ds = pairs.at(tree, epoch=epoch, step=step)
    totals = "scalar" not in ds and "top" in ds and bool(head) and not phrase and not norm  # which know single pairs
    if not totals:
        _require_scalars(ds)
    scalars = ds if totals else ds["scalar"]
    known = min(int(ds["count"]), ds.sizes["rank"]) if totals else ds.sizes["sample"]
    count: dict[str, Any] = {"k": min(images, known)}
    ranked: dict[str, Any] = {"kind": "norm", "bias": True} if norm else {}
    found = {}
    for one in unit or ():
        for through in head or (None,):
            name = f"unit {one}" + ("" if through is None else f", head {through}")
            found[name] = pairs.retrieve(scalars, ds, unit=one, head=through, **count, **ranked)
    for words in phrase or ():
        found[words] = pairs.retrieve(ds["scalar"], ds, text=_phrase(ds, words), **count)
    figure = new_figure(gallery_size(found))
    retrieval_gallery(found, load, figure=figure)
    page.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(page, dpi=150)
    say(f"wrote {page}")


def export_images(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    unit: Units = None,
    head: Annotated[list[int] | None, typer.Option("--head", help="Only through this head; may be repeated.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Images of a unit, and of each of its heads.")] = 10,
    norm: Norm = False,
    epoch: Epoch = None,
    step: Step = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into folders of units that are there.")] = False,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write the images that units stand for as PNG files, of all heads and of each one, and a table of strengths."""
    if not unit:
        raise StudyError("name the units: --unit 37 --unit 624; `neurolens report` lists the loudest ones")
    _, tree, load = _opened(str(study), None, profile, seed)
    assert load is not None
    from neurolens import pairs
    from neurolens.report.pair_images import write_images

    ds = pairs.at(tree, epoch=epoch, step=step)
    _require_scalars(ds)
    ranked: dict[str, Any] = {"kind": "norm", "bias": True} if norm else {}
    paths = write_images(ds, load, folder, units=unit, heads=head or None, top=top, overwrite=overwrite, **ranked)
    say(f"wrote {len(paths) - 1} images and {paths[-1]}")


def _opened(
    run: str, out: Path | None, profile: str | None, seed: int | None
) -> "tuple[Path, xr.DataTree, ImagesById | None]":
    """Open a run; with the folder of its pictures, and its images where the study is known."""
    from neurolens.backend import open_run
    from neurolens.cli.drawing import ending, study_of
    from neurolens.report import images_of

    study, place = study_of(run, profile, seed)
    folder = out or Path("plots" if study is None else Path(run).parent / f"plots{ending(seed)}")
    tree = open_run(place.url, endpoint=place.endpoint, region=place.region)
    return folder, tree, None if study is None else images_of(study)


def _require_scalars(ds: "xr.Dataset") -> None:
    if "scalar" not in ds or "value" not in ds:
        raise MissingMeasurementError(
            "images are ranked by the scalars of pairs, and the run lacks these or the pool; measure them: `neurolens "
            "run STUDY --only pools,pairs`, with [pools] and [pairs] in the study"
        )


def _phrase(ds: "xr.Dataset", words: str) -> "xr.DataArray":
    """Return the embedding of a phrase, named by its words or with its set.

    Raises
    ------
    MissingMeasurementError
        If it was not embedded.
    """
    known = {} if "text" not in ds else {str(name): i for i, name in enumerate(ds["words"].to_numpy().tolist())}
    full = {} if "text" not in ds else {str(name): i for i, name in enumerate(ds["phrase"].to_numpy().tolist())}
    at = full.get(words, known.get(words))
    if at is None:
        raise MissingMeasurementError(
            f"there is no phrase {words!r} in this run; {nearest(words, known)}; or add it to [texts] and run the study"
        )
    return ds["text"].isel(phrase=at).drop_vars(["phrase", "set", "words"], errors="ignore").compute()
