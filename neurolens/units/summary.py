"""How many units are dormant, per layer and in all."""

from typing import Any

import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError
from neurolens.units.dormancy import dormant
from neurolens.units.inputs import described, kept_attrs, require_mask
from neurolens.units.layers_of import per_layer, sizes_of


def dormancy_summary(
    data: xr.Dataset | xr.DataArray, definition: Any = None, tau: Any = None, **options: Any
) -> xr.Dataset:
    """Count dormant units per layer and in all.

    Parameters
    ----------
    data : units (a Dataset), or a bool mask (…, unit) of them with coordinate `layer`; or a dormancy log
        A log that was adopted, or that `neurolens.units.seed_log.read_log` read, (step, log, layer), holds counts
        already. A layer that a log does not have is NaN, and left out of its averages.
    definition, tau, options
        For units: as for `neurolens.dormant`, whose mask is counted; the definition defaults to ``redo``. A mask and a
        log take none of them.

    Returns
    -------
    Dataset, lazy if ``data`` is
        Per layer, in natural order: `n_dormant`, `fraction` (…, layer) and `n_units` (layer). In all, two averages that
        differ where layers differ in width: `mean_fraction` (every layer counts the same, as in the reference's plots)
        and `pooled_fraction` (every unit counts the same); `min_fraction` and `max_fraction`, the band of the layers.

    Raises
    ------
    SchemaError
        If the mask is not bool, or options come with a mask or a log.
    MissingMeasurementError, NonFiniteError
        As for `neurolens.dormant`.
    """
    given = definition is not None or tau is not None or bool(options)
    if isinstance(data, xr.Dataset) and "num_dormant" in data:
        if given:
            raise SchemaError("a log is counted already; definition, tau and options go with the units Dataset")
        return _of_log(data)
    if isinstance(data, xr.Dataset):
        data = dormant(data, "redo" if definition is None else definition, tau, **options)
    elif given:
        raise SchemaError("a mask is counted as it is; give definition, tau and options with the units Dataset instead")
    require_mask(data)
    n, size = per_layer(data, "total"), sizes_of(data)
    fraction = n / size
    found = {
        "n_dormant": n,
        "n_units": size,
        "fraction": fraction,
        "mean_fraction": fraction.mean("layer"),
        "min_fraction": fraction.min("layer"),
        "max_fraction": fraction.max("layer"),
        "pooled_fraction": n.sum("layer") / data.sizes["unit"],
    }
    return described(found, data)


def _of_log(log: xr.Dataset) -> xr.Dataset:
    n, size = log["num_dormant"], log["num_neurons"]
    fraction = n / size
    found = {
        "n_dormant": n,
        "n_units": size,
        "fraction": fraction,
        "mean_fraction": fraction.mean("layer"),
        "min_fraction": fraction.min("layer"),
        "max_fraction": fraction.max("layer"),
        "pooled_fraction": n.sum("layer", min_count=1) / size.sum("layer", min_count=1),
    }
    labelled = {name: schema.label(array, schema.UNIT_RESULTS[name]) for name, array in found.items()}
    return xr.Dataset(labelled, attrs=kept_attrs(log))
