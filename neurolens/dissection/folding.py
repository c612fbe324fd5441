"""The network that dissection runs: the one given, with batch norms folded where no layer that is read notices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from neurolens.capture import capture
from neurolens.layers import Layer
from neurolens.samples.folding import FOLDS, ROUNDING, folded

if TYPE_CHECKING:
    from neurolens.data import Shown


def folded_around(module: nn.Module, layers: Sequence[Layer], probe: "Shown") -> nn.Module:
    """Fold the batch norms of a network into the convolutions before them, in a copy, if the layers stay the same.

    A batch norm at which, or at whose convolution, a layer is read stays. The layers must agree with those of the
    network on the probe up to rounding; otherwise, and where nothing can be folded, the network itself is returned.

    Parameters
    ----------
    module : in eval mode, in float32
    layers : what will be read
    probe : one or two samples, as the module takes them
    """
    float32 = all(p.dtype == torch.float32 for p in module.parameters())
    if not float32 or len(probe.args) != 1 or probe.kwargs or not any(type(m) in FOLDS for m in module.modules()):
        return module
    candidate = folded(module, probe=probe.args[0], keep={layer.tap.module for layer in layers})
    taps = [layer.tap for layer in layers]
    with capture(module, taps) as expected, capture(candidate, taps) as found:
        module(*probe.args)
        candidate(*probe.args)
    near = [float((found[tap] - at).abs().max()) <= ROUNDING * float(at.abs().max()) for tap, at in expected.items()]
    return candidate if all(near) else module
