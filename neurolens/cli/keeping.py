"""Commands that keep: ``init``, ``tag``, ``export``, ``import``, ``doctor`` and ``maintain``."""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from neurolens.cli.console import BAD_INPUT, Overrides, Profile, Run, Seed, console, run_in, say, store_of
from neurolens.errors import StudyError, nearest

TEMPLATES = sorted(path.stem for path in (Path(__file__).parents[1] / "templates").glob("*.toml"))

exports = typer.Typer(no_args_is_help=True, help="Write a run's numbers for other programs.")
imports = typer.Typer(no_args_is_help=True, help="Adopt numbers that other programs wrote.")


def init(
    path: Annotated[Path, typer.Argument(help="The study file to write.")] = Path("study.toml"),
    template: Annotated[
        str,
        typer.Option("--template", "-t", help=f"One of {', '.join(TEMPLATES)}."),
    ] = "digits",
) -> None:
    """Write a commented study file to start from."""
    from neurolens.study_files import init_study

    written = init_study(path, template)
    say(f"wrote {written}; next: neurolens run {written}")


def tag(
    run: Run,
    name: Annotated[str, typer.Argument(help="The tag, e.g. thesis-v1.")],
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Name the present state of a run for good."""
    from neurolens.store import open_store

    place = store_of(run, profile, seed)
    store = open_store(place.url, endpoint=place.endpoint, region=place.region)
    snapshot = store.tag(name)
    say(f"{name} is snapshot {snapshot}: neurolens.open_run({store.url!r}, tag={name!r})")


def doctor(run: Run, profile: Profile = None, seed: Seed = None) -> None:
    """Probe a store, or the place for one: can it be read, written, shared and trusted from here?"""
    from neurolens.store.doctor import doctor as probe

    place = store_of(run, profile, seed)
    checks = probe(place.url, endpoint=place.endpoint, region=place.region)
    for check in checks:
        console.print(f"[green]ok[/]      {check.name}: " if check.ok else f"[red]not ok[/]  {check.name}: ", end="")
        say(check.found if check.ok or not check.mend else f"{check.found}; {check.mend}")
    if not all(check.ok for check in checks):
        raise typer.Exit(BAD_INPUT)


def maintain(
    run: Run,
    expire_days: Annotated[
        float | None, typer.Option("--expire-days", help="Let snapshots older than this expire; tags stay.")
    ] = None,
    grace_days: Annotated[float, typer.Option("--grace-days", help="Never delete objects younger than this.")] = 1.0,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Look after a store: build tiles, let old snapshots expire, and free what nothing refers to."""
    from neurolens.store.maintain import maintain as look_after

    place = store_of(run, profile, seed)
    done = look_after(
        place.url,
        expire=None if expire_days is None else datetime.timedelta(days=expire_days),
        grace=datetime.timedelta(days=grace_days),
        endpoint=place.endpoint,
        region=place.region,
    )
    say(
        f"{done.tiles} tiles built, {done.expired} snapshots expired, {done.deleted} objects deleted, "
        f"{done.bytes_freed / 1e6:.1f} MB freed"
    )


@exports.command("zarr")
def export_zarr(
    run: Run,
    path: Annotated[Path, typer.Argument(help="The folder to make.")],
    tag: Annotated[str | None, typer.Option("--tag", help="Export this tag instead of the newest state.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write a run as plain, consolidated Zarr: opened by xarray without neurolens."""
    from neurolens.store.export import export_zarr as export

    place = store_of(run, profile, seed)
    written = export(place.url, path, tag=tag, endpoint=place.endpoint, region=place.region, overwrite=overwrite)
    say(f"wrote {written}: xarray.open_datatree({str(written)!r}, engine='zarr', chunks={{}})")


@exports.command("csl")
def export_csl(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    dataset: Annotated[str | None, typer.Option("--dataset", help="For the file names; default: the data's.")] = None,
    run_index: Annotated[int, typer.Option("--run-index", help="For the file names.")] = 1,
    noise: Annotated[float, typer.Option("--noise", help="For the file names.")] = 0.01,
    variable: Annotated[str, typer.Option("--variable", help="The gradient for learning time.")] = "grad_norm",
    missing: Annotated[
        str, typer.Option("--missing", help="Where an epoch lacks losses or gradients: 'error', or 'drop' it.")
    ] = "error",
    compat: Annotated[str | None, typer.Option("--compat", help="'seed': the reference's arithmetic.")] = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write cumulative loss and learning time as the reference does: csl_*.npy, lt_*.npy, metrics_*.json."""
    import xarray as xr

    from neurolens.samples.seed_files import export_csl as export

    _one_of("--compat", compat, (None, "seed"))
    _one_of("--missing", missing, ("error", "drop"))
    place = store_of(run, profile, seed)
    options = {"endpoint": place.endpoint, "region": place.region}
    ds = xr.open_dataset(place.url, group="samples", engine="neurolens", chunks={}, backend_kwargs=options)
    name = dataset or str(ds.attrs.get("data", "data")).replace(":", "_")
    for path in export(
        ds,
        folder,
        dataset=name,
        run=run_index,
        noise=noise,
        variable=variable,
        missing="drop" if missing == "drop" else "error",
        compat="seed" if compat else None,
    ):
        say(f"wrote {path}")


@imports.command("samples")
def import_samples(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of loss_*.npy and loss_grad_*.npy.")],
    study: Annotated[Path, typer.Option("--study", help="The study whose store and data they belong to.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Data set in the names; default: the source.")
    ] = None,
    run_index: Annotated[int, typer.Option("--run-index", help="Run in the names.")] = 1,
    noise: Annotated[float, typer.Option("--noise", help="Noise level in the names.")] = 0.01,
    scheme: Annotated[str | None, typer.Option("--scheme", help="plain or run, where the folder holds both.")] = None,
    gradient: Annotated[
        str, typer.Option("--gradient", help="What loss_grad is: grad_norm (input) or grand (parameters).")
    ] = "grad_norm",
    profile: Profile = None,
    seed: Seed = None,
    overrides: Overrides = None,
) -> None:
    """Adopt the per-epoch files that the reference's scorers wrote, and say what is missing."""
    from neurolens import rows
    from neurolens.rows.adopting import adopt
    from neurolens.samples.seed_files import read_samples

    loaded = run_in(study, profile, overrides, seed)
    ds, notes = read_samples(
        folder, dataset=dataset or loaded.data.source, run=run_index, noise=noise, scheme=scheme, gradient=gradient
    )
    for note in notes:
        say(note)
    written, known = adopt(loaded, ds, rows.open_for_writing(loaded))
    say(f"{written} rows adopted, {known} there already; store: {loaded.store.url}")


@exports.command("dormancy")
def export_dormancy(
    run: Run,
    path: Annotated[Path, typer.Argument(metavar="CSV", help="The log to write.")],
    tau: Annotated[float, typer.Option("--tau", help="Dormant: at most this share of the layer's mean.")] = 0.1,
    mode: Annotated[str, typer.Option("--mode", help="'append': replace lines of the same key; 'write': anew.")] = (
        "append"
    ),
    model: Annotated[str | None, typer.Option("--model", help="Name of the model; default: the run's.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of each checkpoint, e.g. 'step{step}'.")] = None,
    true_max: Annotated[bool, typer.Option("--true-max", help="Add a column with the largest activation.")] = False,
    missing: Annotated[
        str, typer.Option("--missing", help="Where a checkpoint was not measured: 'error', or 'drop' it.")
    ] = "error",
    compat: Annotated[str | None, typer.Option("--compat", help="'seed': number layers as the reference does.")] = None,
    profile: Profile = None,
    seed: Seed = None,
) -> None:
    """Write dormant units per layer and checkpoint as the reference logs them: a CSV."""
    import xarray as xr

    from neurolens.units.seed_log import export_dormancy as export

    _one_of("--compat", compat, (None, "seed"))
    _one_of("--missing", missing, ("error", "drop"))
    _one_of("--mode", mode, ("append", "write"))
    place = store_of(run, profile, seed)
    options = {"endpoint": place.endpoint, "region": place.region}
    ds = xr.open_dataset(place.url, group="units", engine="neurolens", chunks={}, backend_kwargs=options)
    written = export(
        ds,
        path,
        model=model or str(ds.attrs.get("run", "run")),
        tau=tau,
        mode="write" if mode == "write" else "append",
        compat="seed" if compat else None,
        revision=revision,
        true_max=true_max,
        missing="drop" if missing == "drop" else "error",
    )
    say(f"wrote {written}")


@imports.command("dormancy")
def import_dormancy(
    path: Annotated[Path, typer.Argument(metavar="CSV", help="A log of the reference.")],
    url: Annotated[str, typer.Option("--store", help="The store to adopt it into; made if there is none.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; default: the store's, or the log's.")] = (
        None
    ),
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Of an S3-compatible server.")] = None,
    region: Annotated[str | None, typer.Option("--region", help="S3 region.")] = None,
) -> None:
    """Adopt a dormancy log: models and thresholds are kept apart, and `neurolens plot` draws them."""
    from neurolens.rows.adopting_logs import adopt_log
    from neurolens.store import open_store
    from neurolens.units.seed_log import read_log

    log, notes = read_log(path)
    for note in notes:
        say(note)
    store = open_store(url, endpoint=endpoint, region=region, create=True)
    run = name or str(store.attributes().get("run") or path.stem)
    written, known = adopt_log(log, store, run=run)
    say(f"{written} rows adopted, {known} there already; store: {store.url}")


def _one_of(option: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise StudyError(f"{option} {value!r} is unknown; {nearest(str(value), [k for k in known if k])}")
