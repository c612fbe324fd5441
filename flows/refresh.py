"""Look for new checkpoints, and run all that a study names."""

from collections.abc import Sequence
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from neurolens import rows
from neurolens.errors import StudyError
from neurolens.flows import registry
from neurolens.flows.running import link_report
from neurolens.store.tiles import build_tiles
from neurolens.study import Study, load_study
from neurolens.study.seeds import each_seed, require_checkpoints


@task(name="tiles", task_run_name="tiles", cache_policy=NO_CACHE)
def tidy(study: Study) -> int:
    """Build the tiles of what is finished: they make reading one sample's history fast."""
    return build_tiles(rows.open_for_writing(study))


@task(name="report", task_run_name="report", cache_policy=NO_CACHE)
def report(study: Study) -> None:
    """Write the report page and link to it."""
    link_report(study)


def run_name() -> str:
    """Name a run by its study, or by the file of it."""
    given = flow_run.parameters
    return f"refresh of {getattr(given.get('study'), 'name', None) or given.get('file')}"


@flow(name="refresh", flow_run_name=run_name)
def refresh(
    file: str | None = None,
    profile: str | None = None,
    overrides: list[str] | None = None,
    train: bool = False,
    study: Study | None = None,
) -> Any:
    """Bring a run up to date: find its checkpoints, and measure those that are new or changed.

    The store's URL is returned; of a study that lists seeds, whose runs are brought up to date one after the other, a
    list of them. The flow run ends Failed, with the list, if a row failed.

    Args:
        file: The study file. It is read at every run, so editing it is all it takes to change what a schedule does.
        profile: One of its `[profiles.NAME]`.
        overrides: Keys set over it, each as in `compute.workers=2`.
        train: Train too, if the study has a `[train]` table. If not, only what another program trains is measured.
        study: The study itself, instead of a file.
    """  # in Google's format: from it Prefect takes the help in the form
    if (study is None) == (file is None):
        raise StudyError("refresh needs a study, or the file of one: give exactly one of study and file")
    if study is None:
        assert file is not None
        study = load_study(file, profile=profile, overrides=tuple(overrides or ()))
    names = registry.names_of(study, train=train)
    require_checkpoints(study)
    if not study.seeds:
        done, message = refresh_run(study, names)
        return Completed(message=message, data=study.store.url) if done else Failed(message=message)
    found = {one.name: refresh_run(one, names) for one in each_seed(study)}
    message = "; ".join(f"{name}: {message}" for name, (_, message) in found.items())
    if not all(done for done, _ in found.values()):
        return Failed(message=message)
    return Completed(message=message, data=[one.store.url for one in each_seed(study)])


def refresh_run(study: Study, names: Sequence[str]) -> tuple[bool, str]:
    """Run the flows of one run; return whether all of them did what they should, and what they say."""
    states = {name: job(study, return_state=True) for name, job in registry.load(names).items()}
    if any(state.name != "Cached" for state in states.values()) and rows.open_for_reading(study) is not None:
        tidy(study)
        report(study)
    message = "; ".join(f"{name}: {str(state.message).removeprefix(f'{name}: ')}" for name, state in states.items())
    return all(state.is_completed() for state in states.values()), message
