"""Which layers have units, and how they are laid out: found by running the network once, or named by globs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from neurolens.capture import Side, Tap
from neurolens.errors import CaptureError, nearest
from neurolens.probe import Activation, Place, Probe, watch

_PATTERN = re.compile(r"(?P<path>[^:#]+)(?::(?P<side>input|output))?(?:#(?P<call>\d+))?")


@dataclass(frozen=True)
class Layer:
    """One layer of units: where its activations are taken, and how they lie.

    Parameters
    ----------
    tap
        Where they are taken.
    name
        Its name, ``tap.layer``.
    units
        How many.
    shape
        One sample's activation without the axis of the units: () for (B, U), (T,) for (B, T, U), (H, W) for
        (B, U, H, W). It is that of the sample that was probed: the T of texts varies.
    axis
        The axis of the units in what `neurolens.capture.capture` gives, from 0; the batch is axis 0.
    kind
        Class of the module.
    order
        When it fires, among the layers of one network.
    """

    tap: Tap
    name: str
    units: int
    shape: tuple[int, ...]
    axis: int
    kind: str = ""
    order: int = 0


def find_layers(model: nn.Module, layers: Literal["auto"] | Sequence[str], probe: Any) -> tuple[Layer, ...]:
    """Find layers of units, in the order in which they fire.

    ``"auto"`` takes every post-activation: what an activation function makes. In networks without attention a layer
    is the module that returns it (``layer3.1.relu``, ``layer3.1.relu#1`` for its second call, or the block that ends
    in a functional activation), else the module that is given it (``layer3.1.conv2:input``). In networks with
    attention it is the hidden layer of each MLP: what the projection after an activation function is given
    (``layers.0.mlp.down_proj:input``), so that gated MLPs count what they compute, activation times gate. Sigmoid and
    tanh count only where a linear layer or a convolution is given their output; a gate or a softmax has no units.

    Otherwise each pattern is matched against module paths, part by part: ``*``, ``?`` and ``[…]`` as in `fnmatch`
    within a part between dots, ``**`` for any number of parts. ``layer4.*`` is the blocks of layer4, ``layer4.**`` all
    in it. A suffix ``:input`` takes what the module is given, ``#1`` only its second call; without it every call is a
    layer. Units are the axis that the operations before say; else axis 1 of maps (B, U, H, W), and the last otherwise.

    Parameters
    ----------
    model
        Run once, in eval mode without gradients; its weights, device and mode stay as they are.
    layers
        ``"auto"`` or patterns.
    probe
        Arguments of one forward: a tensor, a tuple of tensors, a mapping of keyword arguments, a pair of both, or
        something with ``args`` and ``kwargs``, such as `neurolens.data.shown` yields. At most two samples are used.

    Raises
    ------
    CaptureError
        If the forward fails, nothing is found, a pattern matches nothing (near names are given), or a layer has no
        batch of floating-point units.
    """
    seen = watch(model, probe)
    found = _automatic(seen) if layers == "auto" else _named(seen, layers)
    return tuple(_layer(place, seen) for place in found)


def firing(model: nn.Module, probe: Any) -> tuple[Place, ...]:
    """Return every call of every module in one forward, as `find_layers` sees them, outputs only, in firing order."""
    return tuple(place for place in watch(model, probe).places if place.side == "output")


def _automatic(seen: Probe) -> list[Place]:
    chosen = [place for activation in seen.activations if (place := _unit_place(activation, seen)) is not None]
    if not chosen:
        raise CaptureError(
            f"no layers of units were found behind activation functions: {_why_none(seen)}; name layers by globs over "
            "module paths; `neurolens layers STUDY --all` lists what there is"
        )
    return _ordered(chosen)


def _why_none(seen: Probe) -> str:
    ran = len(seen.activations)
    places = [place for a in seen.activations for place in (*a.outputs, *(p for _, p in a.inputs)) if place.shape]
    if not places:
        return (
            f"{ran} activation functions ran, and no module returns or is given what they make" if ran else "none ran"
        )
    example = next((place for place in places if not _batched(place, seen)), places[0])
    return (
        f"{ran} activation functions ran, and none makes hidden units of a batch; {example.tap.layer!r}, say, is of "
        f"shape {example.shape} for {seen.batch} samples"
    )


def _unit_place(activation: Activation, seen: Probe) -> Place | None:
    """Choose where an activation is taken as units; None where it is none."""
    inputs = [(how, place) for how, place in activation.inputs if _batched(place, seen)]
    outputs = [place for place in activation.outputs if _batched(place, seen)]
    products = [(how, place) for how, place in inputs if place.product is not None]
    gated = next((place for how, place in products if how == "gated"), None)
    same = next((place for how, place in products if how == "same"), None)
    if activation.gate and (seen.attends or not products):
        return same if same is not None and _is_hidden(same, seen) else None
    if gated is not None:
        return gated
    if seen.attends and not any(_is_map(place) for place in (*outputs, *(place for _, place in inputs))):
        return same if same is not None and _is_hidden(same, seen) else None
    if outputs:
        return outputs[0]
    if same is not None:
        return same
    given = [place for how, place in inputs if how == "same"]
    if given:
        return next((place for place in given if place.leaf), given[0])
    return products[0][1] if products else None


def _is_map(place: Place) -> bool:
    return place.axis == 1 and place.shape is not None and len(place.shape) > 2


def _is_hidden(place: Place, seen: Probe) -> bool:
    """Tell hidden units of tokens from a pooled head: (B, T, U), or (B·T, U)."""
    assert place.shape is not None
    return len(place.shape) > 2 or (seen.tokens is not None and place.shape[0] == seen.batch * seen.tokens)


def _batched(place: Place, seen: Probe) -> bool:
    if place.shape is None or not place.floating or len(place.shape) < 2:
        return False
    return place.shape[0] in (seen.batch, seen.batch * (seen.tokens or 1))


def _ordered(places: Sequence[Place]) -> list[Place]:
    return sorted({place.tap: place for place in places}.values(), key=lambda place: place.order)


def _named(seen: Probe, patterns: Sequence[str]) -> list[Place]:
    """Return what patterns match."""
    if not patterns:
        raise CaptureError("no layer is named; write layers = 'auto', or at least one glob over module paths")
    chosen: list[Place] = []
    for pattern in patterns:
        found = _PATTERN.fullmatch(pattern)
        if found is None:
            raise CaptureError(
                f"layers: {pattern!r} is no pattern; write a glob, then ':input' and '#1' where they apply"
            )
        side: Side = "input" if found["side"] == "input" else "output"
        matched = [place for place in seen.places if place.module and _matches(found["path"], place.module)]
        if not matched:
            known = {re.sub(r"(?<=\.)\d+(?=\.|$)", "*", place.module) for place in seen.places if place.module}
            count = len({place.module for place in seen.places} - {""})
            raise CaptureError(
                f"layers: {pattern!r} matches none of the {count} modules that the forward calls (`*` stays within a "
                f"part between dots, `**` does not); {nearest(found['path'], known)}"
            )
        wanted = [
            place
            for place in matched
            if place.side == side and (found["call"] is None or place.call == int(found["call"]))
        ]
        if not wanted:
            calls = 1 + max(place.call for place in matched)
            raise CaptureError(f"layers: {pattern!r} names a call that is not made; there are #0 to #{calls - 1}")
        chosen += wanted
    return _ordered(chosen)


def _matches(pattern: str, path: str) -> bool:
    """Match a path part by part, ``**`` standing for any number of parts."""
    return _parts_match(pattern.split("."), path.split("."))


def _parts_match(pattern: list[str], parts: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_parts_match(pattern[1:], parts[i:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _parts_match(pattern[1:], parts[1:])


def _layer(place: Place, seen: Probe) -> Layer:
    """Turn a place into a layer.

    Raises
    ------
    CaptureError
        If what is taken there is no batch of floating-point units.
    """
    tap, shape = place.tap, place.shape
    what = "is given" if tap.side == "input" else "returns"
    where = f"layer {tap.layer!r}: {place.kind} {what}"
    if shape is None or not place.floating:
        values = "no tensor" if shape is None else "whole numbers"
        raise CaptureError(f"{where} {values}, and floating-point activations were needed; leave it out of layers")
    tokens = seen.tokens or 0
    if len(shape) == 2 and tokens and shape[0] == seen.batch * tokens:
        return Layer(replace(tap, flat=True), tap.layer, shape[1], (tokens,), 2, place.kind, place.order)
    if len(shape) < 2 or shape[0] != seen.batch:
        raise CaptureError(
            f"{where} an array of shape {shape}, and a first axis of {seen.batch} samples was needed; "
            "leave it out of layers"
        )
    axis = place.axis if place.axis else (1 if len(shape) in (2, 4, 5) else len(shape) - 1)
    return Layer(tap, tap.layer, shape[axis], shape[1:axis] + shape[axis + 1 :], axis, place.kind, place.order)
