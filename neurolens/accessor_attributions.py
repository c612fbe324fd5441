"""The methods of ``ds.lens`` that concern attributions by unit cluster: scores, tables, comparisons."""

from typing import Any

import xarray as xr


class AttributionMethods:
    """Methods of the opened cube `attributions`.

    Options are those of the function of the same name in `neurolens.attribution`.
    """

    _data: xr.Dataset

    def map_scores(self, **options: Any) -> xr.Dataset:
        """How concentrated and how faithful each map is: `neurolens.attribution.map_scores`."""
        from neurolens.attribution import map_scores

        return map_scores(self._data, **options)

    def accuracy(self, **options: Any) -> xr.Dataset:
        """How often the network is right, whatever is filtered: `neurolens.attribution.accuracy`."""
        from neurolens.attribution import accuracy

        return accuracy(self._data, **options)

    def filtered_summary(self, **options: Any) -> xr.Dataset:
        """The scores of each set of units and method: `neurolens.attribution.filtered_summary`."""
        from neurolens.attribution import filtered_summary

        return filtered_summary(self._data, **options)

    def compare(self, **options: Any) -> xr.Dataset:
        """Whether filtered maps score otherwise than the whole: `neurolens.attribution.compare`."""
        from neurolens.attribution import compare

        return compare(self._data, **options)

    def held_out(self, **options: Any) -> xr.Dataset:
        """The best filter, tested on samples that did not choose it: `neurolens.attribution.held_out`."""
        from neurolens.attribution import held_out

        return held_out(self._data, **options)

    def control(self, **options: Any) -> xr.Dataset:
        """Whether a set does more than random ones of its size: `neurolens.attribution.control`."""
        from neurolens.attribution import control

        return control(self._data, **options)

    def per_class(self, **options: Any) -> xr.Dataset:
        """Scores with and without filters, class by class: `neurolens.attribution.per_class`."""
        from neurolens.attribution import per_class

        return per_class(self._data, **options)

    def decompose(self, **options: Any) -> xr.Dataset:
        """How the whole is made of clusters: `neurolens.attribution.decompose`."""
        from neurolens.attribution import decompose

        return decompose(self._data, **options)
