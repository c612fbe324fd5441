"""The command ``layers``: which layers of units a study's network has, and which of them are measured."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from neurolens.cli.console import Overrides, Profile, listing, print_whole, say, study_in

if TYPE_CHECKING:
    from neurolens.layers import Layer
    from neurolens.models import Network
    from neurolens.study import Study

TABLES = ("units", "activations")


def layers(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")],
    everything: Annotated[bool, typer.Option("--all", help="List every module that a forward calls.")] = False,
    profile: Profile = None,
    overrides: Overrides = None,
) -> None:
    """Show the network's layers of units and which the study measures. The network runs once, on two samples."""
    from neurolens import models
    from neurolens.layers import firing

    loaded = study_in(study, profile, overrides)
    network = models.build(loaded.model, seed=0)
    shown = _two_samples(loaded, network)
    places = firing(network.module, shown)
    calls = Counter(place.module for place in places)
    if everything:
        _list_modules(loaded, places, calls)
        return
    found, takers = _layers(loaded, network, shown)
    table = listing(
        _title(loaded), "layer", "module", "side", "calls", "units", "one sample", "measured in", wrapped=()
    )
    for layer in found:
        module = layer.tap.module
        table.add_row(
            escape(layer.name),
            layer.kind,
            layer.tap.side,
            str(calls[module]),
            str(layer.units),
            escape(_sample_shape(layer, texts=network.tokenizer is not None)),
            ", ".join(takers[layer.name]),
        )
    print_whole(table)
    say(f"{len(found)} layers, {sum(layer.units for layer in found)} units")
    for name in TABLES:
        taken = [layer for layer in found if name in takers[layer.name]]
        if getattr(loaded, name) is not None:
            say(f"[{name}] takes {len(taken)} layers, {sum(layer.units for layer in taken)} units")
    if not any(getattr(loaded, name) is not None for name in TABLES):
        say("the study measures none of them; add a [units] or [activations] table")


def _two_samples(study: "Study", network: "Network") -> Any:
    """Return what the network is shown first.

    Raises
    ------
    DataError
        If the study's data hold nothing.
    """
    import numpy as np

    from neurolens import data
    from neurolens.errors import DataError

    samples = data.study_samples(study)
    if not len(samples):
        raise DataError(f"{samples.name} has no samples, and layers are found by showing two; widen data.select")
    head = np.arange(min(2, len(samples)))
    return next(data.shown(samples, network, batch_size=2, device="cpu", indices=head))


def _layers(study: "Study", network: "Network", shown: Any) -> tuple[list["Layer"], dict[str, list[str]]]:
    """Return every layer that is found automatically or named by the study, and which tables take it."""
    from neurolens.errors import CaptureError
    from neurolens.layers import find_layers

    named = {name: getattr(study, name).layers for name in TABLES if getattr(study, name) is not None}
    found: dict[str, Layer] = {}
    takers: dict[str, list[str]] = {}
    for name, wanted in (("", "auto"), *named.items()):
        try:
            these = find_layers(network.module, wanted, shown)
        except CaptureError:
            if name or all(wanted == "auto" for wanted in named.values()):
                raise
            continue  # no layer is found automatically, and the study names its own
        for layer in these:
            found[layer.name] = layer
            takers.setdefault(layer.name, []).extend([name] if name else [])
    return sorted(found.values(), key=lambda layer: layer.order), takers


def _list_modules(study: "Study", places: Any, calls: "Counter[str]") -> None:
    """Print every call of every module, in the order in which they return."""
    table = listing(_title(study), "layer", "module", "calls", "returns", wrapped=())
    for place in places:
        if place.module:
            shape = "no tensor" if place.shape is None else str(place.shape)
            table.add_row(escape(place.tap.layer), place.kind, str(calls[place.module]), escape(shape))
    print_whole(table)
    say(f"{len(calls) - 1} modules, in the order in which they return; the first axis is the batch")
    say("write a layer's name or a glob in layers = […] of [units] or [activations]; ':input' takes what it is given")


def _title(study: "Study") -> str:
    transformer = study.model.transformers
    return f"{study.name}: {study.model.name if transformer is None else transformer.source}"


def _sample_shape(layer: "Layer", *, texts: bool) -> str:
    """Lay one sample's activation out as it is captured, with the units in their place; T tokens of a text."""
    around = ["T"] if texts and len(layer.shape) == 1 else [str(side) for side in layer.shape]
    around.insert(layer.axis - 1, str(layer.units))
    return " × ".join(around)
