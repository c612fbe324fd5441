"""Studies of several seeds: one study each, with a name, checkpoints and a store of its own."""

import os
import posixpath

from neurolens.errors import MissingCheckpointError, StudyError
from neurolens.study import StoreTable, Study


def each_seed(study: Study) -> tuple[Study, ...]:
    """Return the study of each seed that a study lists, in order; the study itself where it lists none.

    The seed takes the place of ``train.seed``. The name gets ``-seed<k>``, the folder of checkpoints a folder
    ``seed-<k>`` in it, and the store's URL ``-seed-<k>`` before its suffix (``store-seed-0.icechunk``); all else is
    shared. No file is looked at.
    """
    return tuple(_of(study, seed) for seed in study.seeds) or (study,)


def one_run(study: Study, seed: int | None = None) -> Study:
    """Return the study of one run: that of a seed, or the study itself where it lists none.

    Raises
    ------
    StudyError
        If the study lists seeds and none is named, or one is named that it does not list.
    """
    listed = ", ".join(map(str, study.seeds))
    if not study.seeds and seed is None:
        return study
    if not study.seeds:
        raise StudyError(
            f"study {study.name!r} lists no seeds, so there is no seed {seed}; leave the seed out, or add "
            f"seeds = [{seed}] to its file"
        )
    if seed is None:
        raise StudyError(
            f"study {study.name!r} lists seeds {listed}, each with a run of its own, and one is needed; name it with "
            f"--seed {study.seeds[0]}, in Python with neurolens.study.seeds.one_run(study, {study.seeds[0]}), or name "
            f"its store: {each_seed(study)[0].store.url}"
        )
    if seed not in study.seeds:
        raise StudyError(f"study {study.name!r} lists seeds {listed}, and no seed {seed}; name one of those")
    return _of(study, seed)


def require_checkpoints(study: Study) -> None:
    """Check that there is a folder of checkpoints for each seed, where the study does not train them.

    Raises
    ------
    MissingCheckpointError
        Naming the folders that are not there.
    """
    if study.train is not None or not study.seeds:
        return
    lacking = [one.checkpoints.folder for one in each_seed(study) if not one.checkpoints.folder.is_dir()]
    if lacking:
        raise MissingCheckpointError(
            f"study {study.name!r} lists seeds {', '.join(map(str, study.seeds))} and has no [train] table, so it "
            f"reads the checkpoints of each from a folder of its own, and there is no {', '.join(map(str, lacking))}; "
            "put the checkpoints of each seed there, take the seed out of the list, or add a [train] table"
        )


def _of(study: Study, seed: int) -> Study:
    table = study.checkpoints
    return study.model_copy(
        update={
            "name": f"{study.name}-seed{seed}",
            "seeds": (),
            "train": None if study.train is None else study.train.model_copy(update={"seed": seed}),
            "checkpoints": table.model_copy(update={"folder": table.folder / f"seed-{seed}"}),
            "store": study.store.model_copy(update={"url": _url(study.store, seed)}),
        }
    )


def _url(store: StoreTable, seed: int) -> str:
    """Return the URL of a seed's store; in a bucket that is named without a prefix, the seed is the prefix."""
    if "://" not in store.url:
        stem, suffix = os.path.splitext(store.url.rstrip(os.sep))
        return f"{stem}-seed-{seed}{suffix}"
    scheme, _, place = store.url.rstrip("/").partition("://")
    bucket, slash, prefix = place.partition("/")
    if not slash:
        return f"{scheme}://{bucket}/seed-{seed}"
    stem, suffix = posixpath.splitext(prefix)
    return f"{scheme}://{bucket}/{stem}-seed-{seed}{suffix}"
