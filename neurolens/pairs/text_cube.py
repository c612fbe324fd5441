"""The rows of the texts cube: a block of phrases, embedded by the text tower of one checkpoint."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neurolens import schema
from neurolens.errors import DataError, SchemaError, nearest
from neurolens.pairs.phrases import embed_phrases
from neurolens.pairs.text_encoders import encoder_of
from neurolens.study import Data, Pools, Study, Texts

if TYPE_CHECKING:
    import torch

    from neurolens.data.phrase_sets import PhraseSamples
    from neurolens.models import Network
    from neurolens.store import Axis

Array = npt.NDArray[Any]

MEASUREMENT_VERSION = {"embeddings": 1}
"""Raised when the numbers of a part change."""


class TextsOfStudy(Texts):
    """The table [texts], the data whose classes a set may be, and the pool that phrases are to be compared with."""

    data: Data
    pools: Pools | None = None


def table_of(study: Study) -> TextsOfStudy:
    """Return what a study says of its phrases."""
    assert study.texts is not None
    return TextsOfStudy(**study.texts.model_dump(), data=study.data, pools=study.pools)


def parts(table: Texts) -> tuple[str, ...]:
    """Return the parts of the texts cube: all of them."""
    return tuple(part.name for part in schema.TEXTS.parts)


def key_config(table: Texts, part: str) -> dict[str, Any]:
    """Return the settings that the numbers of a part depend on, with its version, JSON-able.

    Phrases, templates and what is in files of embeddings are not among them: they are in the ids of the phrases, so
    that a change of one set leaves the others as they are.

    Raises
    ------
    SchemaError
        If there is no such part.
    """
    if part not in MEASUREMENT_VERSION:
        raise SchemaError(f"the texts cube has no part {part!r}; {nearest(part, MEASUREMENT_VERSION)}")
    return {"version": MEASUREMENT_VERSION[part]}


def open_samples(table: TextsOfStudy) -> "PhraseSamples":
    """Read the sets of phrases that the study names.

    Raises
    ------
    DataError, NonFiniteError
        As `neurolens.pairs.text_sets.study_phrases`.
    """
    from neurolens.data.phrase_sets import phrase_samples
    from neurolens.pairs.text_sets import study_phrases

    return phrase_samples({name: study_phrases(name, one, table.data) for name, one in table.sets.items()})


def block_size(table: Texts, axes: Mapping[str, "Axis"]) -> int:
    """Return how many phrases are embedded and written together."""
    return table.block


def axes(network: "Network", samples: "PhraseSamples", table: TextsOfStudy) -> dict[str, "Axis"]:
    """Return the fixed axis of the cube: ``feature``. The text tower is run on one phrase to see how wide it is.

    Raises
    ------
    SchemaError
        If phrases are to be embedded, and the network has no text tower.
    DataError
        If embeddings of files have another width than those of the text tower, of another file, or of the pool.
    """
    from neurolens.store import Axis

    widths = {f"texts.sets.{name}.embeddings": values.shape[1] for name, values in samples.given.items()}
    for name, templates in samples.templates.items():
        first = samples.coords["words"][int(np.flatnonzero(samples.coords["set"] == name)[0])]
        with _placed(network, "cpu") as placed:
            found = encoder_of(placed)([templates[0].replace("{}", str(first))])
        widths = {"the text tower": int(found.shape[-1]), **widths}
        break
    pool = _pool_features(network, table)
    widths = widths if pool is None else {"the attention pool": pool, **widths}
    one = next(iter(widths))
    other = next((name for name, width in widths.items() if width != widths[one]), None)
    if other is not None:
        raise DataError(
            f"embeddings of the wrong width: {other} has {widths[other]} features, and {one} has {widths[one]}; give "
            "embeddings by the text tower of the same network"
        )
    return {"feature": Axis(np.arange(widths[one], dtype=np.int64))}


def _pool_features(network: "Network", table: TextsOfStudy) -> int | None:
    """Return how wide the pool writes; None where the study asks for no pool, and the network has not just one."""
    from neurolens.pairs.adapters import pool_of
    from neurolens.pairs.showing import pool_path

    if table.pools is not None:
        return pool_of(network.module.get_submodule(pool_path(network.module, table.pools.module))).features
    try:
        return pool_of(network.module).features
    except SchemaError:
        return None


def measure(
    network: "Network",
    samples: "PhraseSamples",
    *,
    parts: Sequence[str],
    table: Texts,
    batch_size: int = 64,
    device: "str | torch.device" = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Array]:
    """Embed some phrases by one checkpoint's text tower.

    Parameters
    ----------
    network : models.Network
        The filled module; it is moved to ``device``.
    samples : data.phrase_sets.PhraseSamples
        The phrases, with their templates or embeddings.
    parts
        Parts of the texts cube.
    table : Texts
        Settings of the measurement.
    batch_size
        Texts that go through the tower at once: phrases times templates.
    device
        Where the tower runs.
    progress
        Called with (phrases done, phrases).

    Returns
    -------
    values : variable name → array
        ``text`` float32 (phrase, feature), of length 1: the mean of a phrase's prompts, see `embed_phrases`, or what
        its file of embeddings has.

    Raises
    ------
    SchemaError
        If a part is unknown, the network has no text tower, or this returns anything but an embedding per text.
    NonFiniteError
        If an embedding is NaN, infinite or 0, or the templates of a phrase cancel.
    DataError
        If a text has more tokens than the tower takes, or the tower does not know it.
    """
    wanted = [variable for part in parts for variable in schema.TEXTS.part(part).variables]
    words, of = samples.coords["words"], samples.coords["set"]
    found: dict[str, Array] = {}
    for name in dict.fromkeys(of.tolist()):
        at = np.flatnonzero(of == name)
        found[name] = (
            samples.given[name][samples.place[at]]
            if name in samples.given
            else _embedded(network, words[at].tolist(), samples.templates[name], batch_size, device)
        )
        if progress is not None:
            progress(sum(map(len, found.values())), len(samples))
    out = np.empty((len(samples), next(iter(found.values())).shape[1]), np.float32)
    for name, values in found.items():
        out[of == name] = values
    return {variable.name: out for variable in wanted}


def _embedded(
    network: "Network", words: list[str], templates: tuple[str, ...], batch: int, device: "str | torch.device"
) -> Array:
    with _placed(network, device) as placed:
        embeddings: Array = embed_phrases(encoder_of(placed), words, templates, batch=batch).to_numpy()
    return embeddings


@contextlib.contextmanager
def _placed(network: "Network", device: "str | torch.device") -> Iterator["Network"]:
    """Lend the network in eval mode on the device; a copy of it, where that is another one."""
    import torch

    from neurolens.samples.softmax import full_precision

    module, target = network.module, torch.device(device)
    if any(tensor.device != target for tensor in (*module.parameters(), *module.buffers())):
        module = copy.deepcopy(module).to(target)
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        with full_precision():
            yield replace(network, module=module)
    finally:
        for one, mode in modes.items():
            one.training = mode
