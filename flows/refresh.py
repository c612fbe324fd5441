"""Look for new checkpoints, and run all that a study names."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from neurolens import rows
from neurolens.errors import StudyError
from neurolens.flows import registry
from neurolens.flows.running import link_report
from neurolens.store.tiles import build_tiles
from neurolens.study import Study, load_study


@task(name="tiles", cache_policy=NO_CACHE)
def tidy(study: Study) -> int:
    """Build the tiles of what is finished: they make reading one sample's history fast."""
    return build_tiles(rows.open_for_writing(study))


@task(name="report", cache_policy=NO_CACHE)
def report(study: Study) -> None:
    """Write the report page and link to it."""
    link_report(study)


@flow(name="refresh")
def refresh(
    study: Study | None = None,
    file: str | None = None,
    profile: str | None = None,
    overrides: list[str] | None = None,
    train: bool = False,
) -> Any:
    """Bring a run up to date: find its checkpoints, and measure those that are new or changed.

    Parameters
    ----------
    study
        The study itself, or:
    file, profile, overrides
        The study file, one of its profiles, and ``key=value`` overrides. It is read at every run, so editing the file
        is all it takes to change what a schedule does.
    train
        Train too, if the study says how. By default only what another program trains is measured.

    Returns
    -------
    The store's URL. The flow run ends Failed, with the list, if a row failed.
    """
    if (study is None) == (file is None):
        raise StudyError("refresh needs a study, or the file of one: give exactly one of study and file")
    if study is None:
        assert file is not None
        study = load_study(file, profile=profile, overrides=tuple(overrides or ()))
    names = (("train",) if train and study.train is not None else ()) + rows.cubes(study)
    states = {name: job(study, return_state=True) for name, job in registry.load(names).items()}
    if any(state.name != "Cached" for state in states.values()):
        tidy(study)
        report(study)
    failed = {name: state for name, state in states.items() if not state.is_completed()}
    if failed:
        return Failed(message="; ".join(f"{name}: {state.message}" for name, state in failed.items()))
    return Completed(message="; ".join(str(s.message) for s in states.values()), data=study.store.url)
