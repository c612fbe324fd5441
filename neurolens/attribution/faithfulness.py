"""Whether a map names what an answer rests on: how far the answer falls without its highest entries."""

import numpy as np
import xarray as xr
from torch import Tensor, nn

from neurolens.attribution.curves import highest
from neurolens.attribution.fills import Fill
from neurolens.attribution.masked import Target, answers
from neurolens.attribution.scores import Compat, count_of


def faithfulness(
    module: nn.Module,
    x: Tensor,
    maps: xr.DataArray,
    *,
    grid: int | None = None,
    share: float = 0.1,
    fill: Fill = "zero",
    target: Target = "predicted",
    batch_size: int = 64,
    budget_mib: float = 2048,
    compat: Compat = None,
) -> xr.Dataset:
    """Measure how far the explained class falls when the highest entries of a map are taken away.

    **Eager.** Samples are shown once as they are. Maps that choose the same entries of a sample share a pass, so all
    maps of a sample belong in one call. Maps are read sample by sample.

    Parameters
    ----------
    module : nn.Module
        Takes ``x`` and returns logits. Run in eval mode and left as it was.
    x : (B, channel, y, x) or (B, input) floating point
        Samples as the network takes them, on its device.
    maps : (sample, …, channel, y, x), (sample, …, y, x), (sample, …, input), or (sample, …, patch_y, patch_x)
        Attributions of these samples, or their `patch_table`. Entries are pixels, numbers of a vector, or patches, by
        falling \\|attribution\\|, summed over channels, the lowest number first of equal ones.
    grid
        Take away patches, so many per side; pixels by default.
    share
        How many entries: this share of them, rounded, halves to even, and at least one.
    fill
        What comes in their place, see `filled`.
    target : "predicted", or (B,) whole numbers
        The class: the one that the network predicts for the sample as it is, or the given ones. Give what the maps
        explain, e.g. ``target=maps["target"]``.
    batch_size
        Samples of a pass, cut down to the budget. Changes no number beyond rounding.
    budget_mib
        Memory for a pass.
    compat : {"seed"}, optional
        As the reference: channels are summed in the dtype of the map, and of a map without mass the first entries are
        taken away. (The reference breaks other ties by chance; here they are broken as ever.)

    Returns
    -------
    Dataset
        Over (sample, …), float64, NaN where a map is zero everywhere or not finite: ``drop``, the probability minus
        that without the entries, negative if it rises; ``relative_drop``, of the probability; ``log_prob_drop``, nats;
        ``logit_drop``. Over (sample,): ``probability`` of the class and ``target``. Attributes: ``count`` of
        ``entries`` that are taken away, ``pictures``, how many distinct samples were shown, in ``forwards`` passes of
        up to ``batch_size``.

    Raises
    ------
    SchemaError
        If these are no maps, an option is unknown or does not fit, or the budget does not hold one sample.
    DataError
        If maps, targets or the fill do not fit the samples.
    ModelMismatchError
        If the network does not give a row of logits per sample.
    NonFiniteError
        If a logit is NaN or infinite, naming the sample by its number.

    References
    ----------
    Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has Learned" (one step of its curve).
    """
    count_of(share, 1)

    found = answers(
        module,
        x,
        maps,
        lambda row: [highest(row, share)],
        times=1,
        grid=grid,
        fill=fill,
        target=target,
        batch_size=batch_size,
        budget_mib=budget_mib,
        compat=compat,
    ).isel(time=0)
    probability = np.exp(found["log_prob"])
    data = {
        "drop": probability - np.exp(found["masked_log_prob"]),
        "relative_drop": -np.expm1(found["masked_log_prob"] - found["log_prob"]),
        "log_prob_drop": found["log_prob"] - found["masked_log_prob"],
        "logit_drop": found["logit"] - found["masked_logit"],
        "probability": probability,
        "target": found["target"],
    }
    attrs = {**found.attrs, "count": count_of(share, found.attrs["entries"])}
    return xr.Dataset(data, attrs=attrs)
