"""Where the paths start that gradients are integrated along, from a sample's own pixels or without them."""

import torch
from torch import Tensor

from neurolens.attribution.fills import blur_fill
from neurolens.errors import SchemaError, nearest
from neurolens.study import Preprocessing

NAMED = ("zero", "black", "mean", "blur")


def path_starts(x: Tensor, baseline: str | float, preprocessing: Preprocessing) -> Tensor:
    """Return where the path to each sample starts.

    Parameters
    ----------
    x : (B, channel, y, x)
        Samples as the network takes them.
    baseline : {"zero", "black", "mean", "blur"} or number
        A number in the values that the network is given: zero is the mean colour where pictures are normalised. Black
        is what the preprocessing makes of it, (0 − mean) / std. The mean is that of each channel of the sample, and
        "blur" is `neurolens.attribution.blur_fill`.
    preprocessing : study.Preprocessing
        With mean and std.

    Returns
    -------
    starts : (1, channel, y, x), the same for all samples, or (B, channel, y, x)

    Raises
    ------
    SchemaError
        If there is no such baseline.
    """
    if not isinstance(baseline, str):
        return torch.full_like(x[:1], baseline)
    if baseline == "zero":
        return torch.zeros_like(x[:1])
    if baseline == "black":
        mean, std = (x.new_tensor(each).view(1, -1, 1, 1) for each in (preprocessing.mean, preprocessing.std))
        return (-mean / std).expand_as(x[:1]).clone()
    if baseline == "mean":
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x).clone()
    if baseline == "blur":
        return blur_fill(x, torch.zeros_like(x[:, 0], dtype=torch.bool))
    raise SchemaError(f"baseline={baseline!r} is unknown; {nearest(baseline, NAMED)}, or give a number")
