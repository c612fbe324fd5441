"""Weights that save_pretrained wrote, filled into a network: read safely, matched by name, strictly."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurolens import hub, models, refilling, revisions, weights
from neurolens.checkpoint_folders import weight_files
from neurolens.checkpoints import require_unchanged
from neurolens.errors import CheckpointError, ModelMismatchError, NonFiniteError
from neurolens.fingerprints import digest as digest_of
from neurolens.hub import CONFIG
from neurolens.study import Checkpoints as Table
from neurolens.transformers_models import ATTENTION, VOLATILE, configuration

_LEGACY = ((re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"), (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"))

# Keys of a configuration that change no number of a forward in eval mode.
_IDLE = re.compile(
    r"^_|dropout|layerdrop|_pdrop$|drop_rate|drop_path|initializer|^init_|^(id2label|label2id|problem_type|classifier_.*|"
    r"bos_token_id|eos_token_id|sep_token_id|gradient_checkpointing|task_specific_params|output_.*|return_dict|"
    r"tokenizer_class|chunk_size_feed_forward|max_length|summary_.*|num_labels|finetuning_task)$"
)


def load(
    module: nn.Module,
    path: str | os.PathLike[str],
    table: Table,
    *,
    digest: str | None = None,
    allow_non_finite: bool = False,
) -> tuple[str, ...]:
    """Fill a network from a checkpoint: a file, as `refilling.load`; or a folder, fetched first if it is to be.

    Parameters
    ----------
    module
        A network of the transformers library, whose names are found with and without the prefix of its base model; or
        any other, whose names are the file's.
    digest
        The fingerprint when it was discovered; compared after the filling.

    Returns
    -------
    left_out
        The file's tensors that the network has no use for: the head that ``AutoModel`` leaves out, and buffers that
        its class computes for itself. Any other that is left over is an error.

    Raises
    ------
    MissingCheckpointError
        If it is a revision that is not on this machine and may not be fetched.
    CheckpointError
        If it cannot be read safely, lacks a shard, or changed since it was discovered.
    ModelMismatchError
        If its configuration or its tensors are not the network's; the network is then as it was.
    NonFiniteError
        If a tensor holds NaN or infinity and that is not allowed.
    """
    path = Path(path)
    if path.is_file():
        refilling.load(module, path, table, digest=digest, allow_non_finite=allow_non_finite)
        return ()
    folder = revisions.here(path)
    if not folder.is_dir():
        digest_of(folder)  # says what is there instead
    _same_configuration(module, folder)
    state = _state(folder, table)
    if not allow_non_finite and (name := weights.non_finite(state)) is not None:
        raise NonFiniteError(
            f"'{folder}' has NaN or infinity in {name!r}: the run had diverged by then; "
            "leave the checkpoint out with checkpoints.end, or set allow_non_finite = true"
        )
    targets = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    matched, left_out = matching(module, targets, state)
    if targets.keys() - matched.keys() and (converted := _converted(module, targets, folder)) is not None:
        matched, left_out = converted
    try:
        weights.fill(module, {k: _cast(k, v, targets, folder, allow_non_finite) for k, v in matched.items()})
    except ModelMismatchError as error:
        raise ModelMismatchError(f"'{folder}': {error}") from error
    if digest is not None:
        require_unchanged(folder, digest)
    return left_out


def matching(
    module: nn.Module, targets: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name a file's tensors as the network does, and set aside those that it has no use for.

    Tied tensors are saved once, and given to each name they have in the network.

    Raises
    ------
    ModelMismatchError
        If two tensors that the network ties differ in the file.
    """
    named: dict[str, Tensor] = {}
    prefix = getattr(module, "base_model_prefix", "")
    for name, tensor in state.items():
        named[_renamed(name, targets, prefix)] = tensor
    shared: dict[int, list[str]] = {}
    for name, target in targets.items():
        shared.setdefault(id(target), []).append(name)
    for names in shared.values():
        there = [name for name in names if name in named]
        if any(not torch.equal(named[there[0]], named[other]) for other in there[1:]):
            raise ModelMismatchError(
                f"{' and '.join(there)} are one tensor in the network (tie_word_embeddings), and differ in the file; "
                f"correct {CONFIG} in model.transformers.source"
            )
        if there:
            named |= dict.fromkeys(names, named[there[0]])
    for name, target in targets.items():  # buffers that a class computes, and may or may not save
        if name not in named and not isinstance(target, nn.Parameter) and _ignored(module, name, "missing"):
            named[name] = target.detach().clone()
    left_out = tuple(name for name in named if name not in targets and _may_be_left_out(module, name))
    return {name: tensor for name, tensor in named.items() if name not in left_out}, left_out


def _may_be_left_out(module: nn.Module, name: str) -> bool:
    """Tell whether a class has no use for a tensor: it ignores it itself, or it is of a head that it leaves out."""
    if not hasattr(module, "base_model_prefix"):
        return False
    bare = name.removeprefix(f"{module.base_model_prefix}.")
    parts = {child for child, _ in module.named_children()}
    is_head = _is_base(module) and bare.partition(".")[0] not in parts
    return is_head or _ignored(module, name, "unexpected")


def _converted(
    module: nn.Module, targets: Mapping[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """Let the library name a folder's tensors, where it has renamed or joined those of an architecture since.

    None if they do not fit then either: what is missing or left over is said of the file's own names.
    """
    if not hasattr(module, "from_pretrained"):
        return None
    kind: Any = type(module)
    with models.building(), hub.quiet():
        try:
            made, told = kind.from_pretrained(
                str(folder),
                dtype=next((t.dtype for t in targets.values() if t.is_floating_point()), torch.float32),
                attn_implementation=ATTENTION,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError):
            return None
    state = {name: tensor for name, tensor in made.state_dict().items() if name in targets}
    over = tuple(sorted(told["unexpected_keys"]))
    whole = state.keys() == targets.keys() and not targets.keys() & set(told["missing_keys"])
    if not whole or told["mismatched_keys"] or not all(_may_be_left_out(module, name) for name in over):
        return None
    return state, over


def _renamed(name: str, targets: Mapping[str, Tensor], prefix: str) -> str:
    """Return the network's name of a tensor: as it is, without its base model's prefix, or with it."""
    for pattern, new in _LEGACY:
        if pattern.search(name):
            name = pattern.sub(new, name)
    if name in targets or not prefix:
        return name
    bare = name.removeprefix(f"{prefix}.")
    if bare != name:
        return name if any(target.startswith(f"{prefix}.") for target in targets) else bare
    return f"{prefix}.{name}" if f"{prefix}.{name}" in targets else name


def _is_base(module: nn.Module) -> bool:
    """Tell whether a network is the base model of its family, without a head."""
    return (
        not hasattr(module, getattr(module, "base_model_prefix", ""))
        and not getattr(module, "can_generate", lambda: False)()
    )


def _ignored(module: nn.Module, name: str, kind: str) -> bool:
    """Tell whether the class itself ignores a tensor that is missing or unexpected."""
    patterns = set(getattr(module, f"_keys_to_ignore_on_load_{kind}", None) or ())
    if kind == "unexpected":  # buffers that were saved once, and are computed now
        buffers = [buffer for buffer, _ in module.named_buffers()]
        if any(buffer.endswith("rotary_emb.inv_freq") for buffer in buffers):
            patterns.add(r"rotary_emb\.inv_freq")
        if any(buffer.endswith("position_ids") for buffer in buffers):
            patterns.add(r"(^|\.)position_ids$")
    return any(re.search(pattern, name) for pattern in patterns)


def _state(folder: Path, table: Table) -> dict[str, Tensor]:
    """Read all shards of a folder."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        part = weights.read_state(
            file,
            trust=table.trust,
            state_key=table.state_key,
            strip_prefixes=table.strip_prefixes,
            renames=table.renames,
        )
        if twice := sorted(state.keys() & part.keys()):
            raise CheckpointError(f"'{folder}': tensor {twice[0]!r} is in two shards; write the folder again")
        state |= part
    return state


def _cast(name: str, tensor: Tensor, targets: Mapping[str, Tensor], folder: Path, allow_non_finite: bool) -> Tensor:
    """Bring a tensor to the dtype that the study holds weights in."""
    target = targets.get(name)
    if (
        target is None
        or target.dtype == tensor.dtype
        or not (
            target.is_floating_point() and tensor.is_floating_point() and target.dtype.itemsize <= tensor.dtype.itemsize
        )
    ):
        return tensor
    cast = tensor.to(target.dtype)
    if not allow_non_finite and weights.non_finite({name: cast}) is not None:
        raise NonFiniteError(
            f"'{folder}': {name!r} has values that {target.dtype} cannot hold; set model.transformers.dtype = 'float32'"
        )
    return cast


def _same_configuration(module: nn.Module, folder: Path) -> None:
    """Refuse a folder whose configuration gives another network: another shape, or other numbers from equal weights."""
    ours = getattr(module, "config", None)
    if not hasattr(ours, "to_dict") or not (folder / CONFIG).is_file():
        return
    mine, theirs = (_settings(config) for config in (ours, configuration(folder)))
    differing = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if differing:
        shown = ", ".join(f"{k} is {theirs.get(k)!r} there and {mine.get(k)!r} here" for k in differing[:4])
        more = f", and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ModelMismatchError(
            f"'{folder}' is of another architecture: in its {CONFIG} {shown}{more}; the checkpoints of a run share "
            "one: set model.transformers.source to this architecture, or leave the checkpoint out"
        )


def _settings(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in VOLATILE and not _IDLE.search(k)}
