"""How a state dict differs from a network, and what would mend it."""

from collections.abc import Mapping

from torch import Tensor

from neurolens.errors import CheckpointError
from neurolens.tensor_names import RENAMES, as_in_network


def report(
    targets: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
) -> str:
    """Say how a state dict differs from a network, and what would mend it."""
    lines = ["the checkpoint's tensors do not fit the network:"]
    lines += [f"{len(missing)} missing ({_few(missing)})"] if missing else []
    lines += [f"{len(unexpected)} unexpected ({_few(unexpected)})"] if unexpected else []
    if misshapen:
        shapes = [f"{k}: {tuple(state[k].shape)} in the file, {tuple(targets[k].shape)} here" for k in misshapen]
        lines += [f"{len(misshapen)} of another shape ({_few(shapes)})"]
    names = _names(targets, state) if missing else []
    classes = _classes(targets, state, misshapen) if not missing and not unexpected else None
    if names:
        mend = f"set {' and '.join(names)}"
    elif classes is not None:
        mend = f"the file has {classes[0]} classes and the network {classes[1]}: set model.classes = {classes[0]}"
    else:
        mend = "set model.name and model.options to the network that was trained, or checkpoints.state_key to its place"
    return "; ".join([" ".join(lines[:2]), *lines[2:], mend])


def _few(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f", and {len(names) - shown} more" if len(names) > shown else "")


def _names(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the settings that would supply every tensor of the network, most of them in shape, if any do."""
    needed = {k for k in targets if not k.endswith("num_batches_tracked")}
    first = next(iter(needed), None)
    for renames in ((), *((which,) for which in RENAMES)):
        try:
            renamed = as_in_network(state, renames=renames)
        except CheckpointError:
            continue
        candidates = {k[: -len(first)] for k in renamed if first and (k == first or k.endswith("." + first))}
        for prefix in sorted(candidates, key=len):
            stripped = {k.removeprefix(prefix): v.shape for k, v in renamed.items()}
            agreeing = sum(k in stripped and stripped[k] == targets[k].shape for k in needed)
            if needed <= stripped.keys() and 2 * agreeing > len(needed):
                settings = [f'checkpoints.strip_prefixes = ["{prefix}"]'] if prefix else []
                return settings + [f'checkpoints.renames = ["{which}"]' for which in renames]
    return []


def _classes(
    targets: Mapping[str, Tensor], state: Mapping[str, Tensor], misshapen: list[str]
) -> tuple[int, int] | None:
    """Return the numbers of classes in the file and here, if the last layer's outputs are all that differs.

    What an attention puts out last is an embedding, whatever its width.
    """
    sizes = {(tuple(state[k].shape), tuple(targets[k].shape)) for k in misshapen}
    counts = {(a[0], b[0]) for a, b in sizes if a and b and a[1:] == b[1:]}
    last = next((k for k in reversed(list(targets)) if targets[k].is_floating_point()), "").rpartition(".")[0]
    rest_agree = all(a and b and a[1:] == b[1:] for a, b in sizes)
    attends = f"{last.rpartition('.')[0]}.k_proj.weight".lstrip(".") in targets
    outputs = rest_agree and len(counts) == 1 and not attends and any(k.startswith(last) for k in misshapen)
    return counts.pop() if outputs else None
