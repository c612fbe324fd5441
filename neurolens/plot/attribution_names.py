"""How methods and sets of units are called in pictures of attributions."""

import xarray as xr

from neurolens.plot.style import cut, short_names

METHODS = {
    "integrated_gradients": "Integrated Gradients",
    "saliency": "Saliency",
    "input_x_gradient": "Input × gradient",
}


def method_name(name: object) -> str:
    """Return how a method is called in pictures."""
    return METHODS.get(str(name), str(name).removeprefix("captum."))


def set_name(name: object, layer: object = "") -> str:
    """Return the name of a set of units without that of its layer."""
    return str(name).removeprefix(f"{layer}/") if str(layer) else str(name)


def short_sets(array: xr.DataArray | xr.Dataset, *, longest: int = 26) -> list[str]:
    """Return names of sets without what all of them share: a cluster's number, or the name in its layer."""
    names = [str(name) for name in array["map"].values]
    told = [[str(v) for v in array[c].values] if c in array.coords else [] for c in ("kind", "cut", "clustering")]
    if all(told) and set(told[0]) == {"only"} and len(set(zip(*told))) == 1 and "cluster" in array.coords:
        return [f"cluster {int(number)}" for number in array["cluster"].values]
    layers = {layer for layer in told[1] if layer}
    if len(layers) == 1:
        layer = layers.pop()
        return [
            "all units" if kind == "whole" else cut(set_name(name, layer), longest)
            for name, kind in zip(names, told[0] or names)
        ]
    return short_names(names, longest=longest)[0]
