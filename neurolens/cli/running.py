"""The command that computes: ``run``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neurolens.cli import serving
from neurolens.cli.console import ROWS_FAILED, Overrides, Profile, Seed, complain, run_in, say, study_in
from neurolens.cli.watching import Outcome, Watch
from neurolens.errors import MissingCheckpointError, NeurolensError, StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from neurolens.study import Study


def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    only: Annotated[
        str | None, typer.Option("--only", help="Run these flows only, e.g. train,samples. Default: all it names.")
    ] = None,
    profile: Profile = None,
    seed: Seed = None,
    overrides: Overrides = None,
) -> None:
    """Bring a run's store up to date with its study: train if asked to, and measure what is missing.

    Of a study that lists seeds, all runs are brought up to date, one after the other, or that of --seed.
    """
    from neurolens.study.seeds import each_seed

    loaded = study_in(study, profile, overrides) if seed is None else run_in(study, profile, overrides, seed)
    outcome = run_study(loaded, None if only is None else tuple(name.strip() for name in only.split(",")))
    for note in outcome.notes:
        say(note)
    say(outcome.summary)
    if outcome.failed:
        raise typer.Exit(ROWS_FAILED)
    for one in each_seed(loaded):
        say(f"store: {one.store.url}")


def run_study(study: "Study", only: tuple[str, ...] | None = None) -> Outcome:
    """Run a study's flows in this process, showing progress: `run_studies` of one."""
    return run_studies([study], only)


def run_studies(studies: "Sequence[Study]", only: tuple[str, ...] | None = None) -> Outcome:
    """Run the flows of studies in this process, showing progress; of one that lists seeds, those of each run.

    A run that fails as a whole does not keep the others from being run. Without a Prefect server of one's own
    (PREFECT_API_URL), a temporary one is started. It takes seconds, so it is left out where nothing is to be done.

    Raises
    ------
    NeurolensError
        If the study, its data, its store or the Prefect server are at fault; failed rows are told of in the result.
    """
    from neurolens.flows import registry
    from neurolens.study.seeds import each_seed, require_checkpoints

    watch, todo, runs = Watch(), [], 0
    for study in studies:
        names = registry.names_of(study) if only is None else only
        registry.find(names)
        require_checkpoints(study)
        serving.prepare()
        for one in each_seed(study):
            runs += 1
            done = nothing_to_do(one, names)
            if done is None or serving.of_ones_own():
                todo.append((one, names))
            else:
                watch.outcome.add(done)
    if not todo:
        return watch.outcome
    with watch.progress, watch.console.status("starting Prefect") as status, serving.serving(watch.progress.stop):
        from neurolens.flows.running import listening

        watch.status = status
        with listening(watch):
            for one, names in todo:
                watch.run = one.name if runs > 1 else ""
                _run_flows(one, registry.load(names), watch)
    for who, why in watch.outcome.reasons:
        complain(f"{who}: {why}")
    return watch.outcome


def _run_flows(study: "Study", flows: "Mapping[str, Any]", watch: Watch) -> None:
    """Run the flows of one run, as far as they get; failures are counted, unless there is this run alone."""
    for name, flow in flows.items():
        before = watch.outcome.failed
        state = flow(study, return_state=True)
        watch.close()
        if state.is_completed() or watch.outcome.failed > before:  # its rows have said why
            continue
        who, error = f"{watch.run} {name}".strip(), state.result(raise_on_failure=False)
        if isinstance(error, BaseException):
            if not (watch.outcome.failed or watch.run) or not isinstance(error, NeurolensError):
                raise error
            watch.outcome.failure(who, str(error))
            if name == "train":
                return  # what follows would measure its checkpoints
        else:
            watch.outcome.failure(who, str(state.message))


def nothing_to_do(study: "Study", names: tuple[str, ...]) -> Outcome | None:
    """Return the outcome of running these flows if all they would do is done, else None. A pure read."""
    from neurolens import rows

    outcome = Outcome()
    if not set(names) <= {"train", *rows.MEASURES} or ("train" in names and not _trained(study)):
        return None
    cubes = [name for name in names if name in rows.MEASURES]
    store = rows.open_for_reading(study) if cubes else None
    try:
        for materials in rows.gather_all(study, cubes):
            plan = rows.plan(materials, store)
            if plan.todo or plan.change:
                return None
            outcome.reused += len(plan.rows)
            outcome.notes |= dict.fromkeys(() if plan.rows else plan.notes[-1:])
    except MissingCheckpointError:
        if "train" in names:
            return None
        raise
    if "train" in names:
        from neurolens import training

        outcome.epochs = training.train(study, progress=False).trained_epochs  # checks that the settings are the same
    return outcome


def _trained(study: "Study") -> bool:
    """Tell whether the study's last epoch is in its metrics."""
    if study.train is None:
        raise StudyError("--only train: the study has no [train] table; add one to train")
    metrics = study.checkpoints.folder / "metrics.csv"
    if not metrics.exists():
        return False
    last = metrics.read_text().strip().splitlines()[-1].partition(",")[0]
    return last.isdigit() and int(last) >= study.train.epochs
