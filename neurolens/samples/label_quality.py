"""Scores of label quality at each checkpoint, from the stored loss and margin."""

import xarray as xr

from neurolens import schema


def self_confidence(ds: xr.Dataset) -> xr.DataArray:
    """Softmax probability of the label at each checkpoint: low where the label looks wrong.

    In-sample: confident learning asks for out-of-sample probabilities, i.e. samples the run did not train on.

    Parameters
    ----------
    ds : Dataset with `loss` (series, sample), nat

    Returns
    -------
    self_confidence : (series, sample) in [0, 1], lazy if ``ds`` is
        exp(−loss) in float64. NaN where the loss was not measured.

    Raises
    ------
    MissingMeasurementError
        If there is no `loss`.

    References
    ----------
    Northcutt et al. 2021, "Confident Learning".
    """
    schema.require(ds, "loss")
    p_true: xr.DataArray = xr.ufuncs.exp(-ds["loss"].astype("float64"))
    return schema.label(p_true, schema.RESULTS["self_confidence"])


def normalized_margin(ds: xr.Dataset) -> xr.DataArray:
    """(p of the label − largest other p + 1) / 2 at each checkpoint: below 0.5 another label is likelier.

    The largest other probability follows from what is stored: exp(−(loss + margin)).

    Parameters
    ----------
    ds : Dataset with `loss` (nat) and `margin` (logit) (series, sample)

    Returns
    -------
    normalized_margin : (series, sample) in [0, 1], lazy if ``ds`` is
        NaN where not measured.

    Raises
    ------
    MissingMeasurementError
        If there is no `loss` or no `margin`.

    References
    ----------
    Northcutt et al. 2021, "Confident Learning".
    """
    schema.require(ds, "loss", "margin")
    loss = ds["loss"].astype("float64")
    score: xr.DataArray = (xr.ufuncs.exp(-loss) - xr.ufuncs.exp(-(loss + ds["margin"])) + 1) / 2
    return schema.label(score, schema.RESULTS["normalized_margin"])
