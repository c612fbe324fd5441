"""Memorisation and influence from many runs, each trained on its own subset of the samples."""

import xarray as xr

from neurolens import schema
from neurolens.errors import SchemaError


def memorization_influence(
    trained: xr.DataArray,
    correct: xr.DataArray,
    test_correct: xr.DataArray | None = None,
    *,
    dim: str = "run",
) -> xr.Dataset:
    """Mean correctness of the runs trained on a sample minus that of the runs that were not.

    Parameters
    ----------
    trained : (run, sample), bool
        Which samples each run was trained on.
    correct : (run, sample), 1 or 0
        What each run makes of every sample, trained on or not.
    test_correct : (run, test_sample), 1 or 0, optional
        What each run makes of held-out samples.
    dim : str
        The dim of the runs.

    Returns
    -------
    Dataset, lazy if the inputs are
        `memorization` (sample) in [−1, 1]; with ``test_correct`` also `influence` (test_sample, sample): the change
        that training on the sample brings to the test sample. `n_in` and `n_out` (sample) count the runs. NaN where
        all runs, or none, were trained on the sample (the reference divides by 1e-10 there), and where a run's
        correctness was not measured.

    Raises
    ------
    SchemaError
        If a dim is missing.

    References
    ----------
    Feldman and Zhang 2020, "What Neural Networks Memorize and Why", eqs. 1 and 2.
    """
    for name, array, needed in (
        ("trained", trained, (dim, "sample")),
        ("correct", correct, (dim, "sample")),
        ("test_correct", test_correct, (dim, "test_sample")),
    ):
        if array is not None and set(array.dims) != set(needed):
            raise SchemaError(f"{name} has dims {array.dims}; it needs {needed}: rename or select before")
    mask = trained.astype("float64")
    inside, outside = mask.sum(dim), (1 - mask).sum(dim)
    n_in, n_out = inside.where(inside > 0), outside.where(outside > 0)
    right = correct.astype("float64")
    known = (right * mask).sum(dim, skipna=False), (right * (1 - mask)).sum(dim, skipna=False)
    memorization = known[0] / n_in - known[1] / n_out
    results = {"memorization": schema.label(memorization, schema.RESULTS["memorization"])}
    if test_correct is not None:
        tested = test_correct.astype("float64")
        with_it = xr.dot(tested, mask, dim=dim)
        # the runs without it: all runs minus those with it, so that one matrix product serves both
        influence = with_it / n_in - (tested.sum(dim) - with_it) / n_out
        influence = influence.transpose("test_sample", "sample")
        results["influence"] = schema.label(influence, schema.RESULTS["influence"])
    results["n_in"] = inside.assign_attrs(long_name="runs trained on the sample", units="1")
    results["n_out"] = outside.assign_attrs(long_name="runs not trained on the sample", units="1")
    return xr.Dataset({name: array.reset_coords(drop=True) for name, array in results.items()})
