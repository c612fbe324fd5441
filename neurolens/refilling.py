"""Fill a network that is kept from one checkpoint after another."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from neurolens import direct_reads, safetensors_headers, weight_layouts, weights
from neurolens.checkpoints import require_unchanged
from neurolens.errors import CheckpointError, ModelMismatchError, NonFiniteError
from neurolens.fingerprints import fingerprint
from neurolens.study import Checkpoints as Table
from neurolens.tensor_names import as_in_network


def load(
    module: nn.Module,
    path: str | os.PathLike[str],
    table: Table,
    *,
    digest: str | None = None,
    allow_non_finite: bool = False,
) -> None:
    """Fill a network from a checkpoint, as the study says. Its tensors are the file's memory where that can be.

    Parameters
    ----------
    digest
        What the file had when it was discovered; compared after the filling, so that the weights are surely its. Who
        uses the network for longer compares it again when done: `require_unchanged`.

    Raises
    ------
    CheckpointError
        If the file cannot be read safely, or changed since it was discovered.
    ModelMismatchError
        If its tensors do not fit.
    NonFiniteError
        If a tensor holds NaN or infinity and that is not allowed; it names the first such tensor.

    After an error the network may hold the file's tensors, or a part of them, or anything: do not measure it. The next
    load overwrites all of it.
    """
    refill(
        module,
        path,
        trust=table.trust,
        state_key=table.state_key,
        strip_prefixes=table.strip_prefixes,
        renames=table.renames,
        allow_non_finite=allow_non_finite,
        mapped=True,
    )
    if digest is not None:
        require_unchanged(Path(path), digest)


def refill(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    state_key: str | None = None,
    strip_prefixes: Iterable[str] = (),
    renames: Iterable[str] = (),
    allow_non_finite: bool = True,
    mapped: bool = False,
) -> None:
    """Fill a network that is kept from a checkpoint: `read_state` and `fill` in one, with their errors.

    The tensors of a file whose layout is known (safetensors; torch.save, from the second file of a run on) are read
    straight into the network's memory. If that fails half-way, or finds NaN or infinity where they are not allowed,
    the network holds what was read so far; the next refill overwrites all of it.

    Parameters
    ----------
    mapped
        Where the layout is known, let the network's tensors be the file's memory instead: nothing is copied. Until the
        next refill the file must then not be overwritten in place or cut short (replacing or deleting it does no
        harm): copy the network first if it is kept for long. A network that was mapped before holds anything after an
        error.
    """
    path, prefixes, renames = Path(path), tuple(strip_prefixes), tuple(renames)
    targets = weights.targets_of(module)
    if _read_straight(module, targets, path, trust, state_key, prefixes, renames, mapped):
        _refuse_non_finite(path, {k: v.detach() for k, v in targets.items()}, allow_non_finite)
        return
    direct_reads.unmap(module, targets)
    state = weights.read_state(path, trust=trust, state_key=state_key, strip_prefixes=prefixes, renames=renames)
    _refuse_non_finite(path, state, allow_non_finite)
    try:
        weights.fill(module, state)
    except ModelMismatchError as error:
        raise ModelMismatchError(f"'{path}': {error}") from error


def _read_straight(
    module: nn.Module,
    targets: Mapping[str, Tensor],
    path: Path,
    trust: bool,
    state_key: str | None,
    prefixes: tuple[str, ...],
    renames: tuple[str, ...],
    mapped: bool,
) -> bool:
    """Read or map a file into a network; False, and nothing happened, where its layout is not known or not equal."""
    if fingerprint(path).damage:
        return False
    with open(path, "rb", buffering=0) as file:
        head = os.pread(file.fileno(), 512, 0)
        if weights.is_safetensors(path, head):
            spans = safetensors_headers.spans(file.fileno()) if state_key is None else None
        else:
            spans = weight_layouts.spans(file, state_key) if head.startswith(weights.ZIP) and not trust else None
        if spans is None:
            return False
        try:
            spans = as_in_network(spans, strip_prefixes=prefixes, renames=renames)
        except CheckpointError:  # which reading it the other way says of the file
            return False
        if mapped:
            return direct_reads.map_into(module, targets, spans, file.fileno())
        direct_reads.unmap(module, targets)
        try:
            return direct_reads.read_into(module, targets, spans, file.fileno())
        except CheckpointError as error:
            raise CheckpointError(f"'{path}' {error}") from error


def _refuse_non_finite(path: Path, state: Mapping[str, Tensor], allowed: bool) -> None:
    if not allowed and (name := weights.non_finite(state)) is not None:
        raise NonFiniteError(
            f"'{path}' has NaN or infinity in {name!r}: the run had diverged by then; "
            "leave the checkpoint out with checkpoints.end, or set allow_non_finite = true in [samples], [units] or "
            "[activations], which can keep such numbers"
        )
