"""Integrated Gradients and Saliency through sets of units: all of them from one forward pass per batch of points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

from neurolens.attribution.cuts import Cuts, Through, differentiable, require_samples
from neurolens.attribution.descent import Piece
from neurolens.attribution.integrals import RULES, Rule, quadrature
from neurolens.attribution.jacobians import Constants
from neurolens.attribution.planner import WHOLE, Cost, Plan
from neurolens.effects.interventions import logits_of
from neurolens.errors import DataError, ModelMismatchError, NonFiniteError, SchemaError, nearest
from neurolens.layers import Layer

Array = npt.NDArray[Any]
Explained = Literal["logit", "log_prob", "margin"]
Cotangents = Literal["same", "bfloat16"]

EXPLAINED = ("logit", "log_prob", "margin")
COTANGENTS = ("same", "bfloat16")
_DIMS = {2: ("input",), 4: ("channel", "y", "x")}
_SPARE = 1.25
"""Memory that kernels take for themselves is not seen: batches are cut as if a point took so much more."""
_ROWS = 4
_GRADIENTS = 40
"""How many gradients of a point are followed back together, at least, and how many of all points of a batch, where
memory allows it: fewer leave kernels without work, more do not fit into caches."""


def basis_gradients(
    module: nn.Module,
    x: Tensor,
    cuts: Cuts,
    plan: Plan,
    *,
    vectors: Sequence[str] | None = None,
    target: Literal["predicted"] | npt.ArrayLike | Tensor = "predicted",
    explain: Explained = "logit",
    steps: int = 50,
    rule: Rule = "gausslegendre",
    baseline: float | Tensor = 0.0,
    batch_size: int = 32,
    budget_mib: float = 2048,
    cotangents: Cotangents = "same",
) -> xr.Dataset:
    """Measure the signed maps of a plan's basis: path integrals of the gradient, and the gradient at the sample.

    The points of all samples (each as it is, and on its way from the baseline) are shown in batches. Of a batch, the
    network runs once, one backward pass goes from the output to the cuts and the input, and one from its cut to the
    input for each vector of the plan. No filter changes what is computed forward, so all maps share it. Where
    `find_cuts` saw that it gives the same gradients, those of several vectors and cuts are followed back together.

    Parameters
    ----------
    module : nn.Module
        Takes ``x`` and returns logits. Run in eval mode and left as it was.
    x : (B, …) floating point
        Samples as the network takes them, on its device.
    cuts : Cuts
        As `find_cuts` found them in this network; all that the plan names.
    plan : Plan
    vectors
        Names of those vectors of the plan that are measured; all by default. Others may have been measured before, with
        a plan of fewer masks: results are put together along ``vector``.
    target : "predicted", or (B,) whole numbers
        The class that is explained: the one that the network predicts for the sample (the first of equal logits), or
        the given ones, such as labels.
    explain : {"logit", "log_prob", "margin"}
        Of the class: its logit, the logarithm of its probability, or its logit minus the largest other one.
    steps, rule
        Of the integral, see `quadrature`; 0 steps leave it out.
    baseline : number, or (…) or (B, …) tensor
        Where paths start, in the values that the network is given.
    batch_size
        Points of a pass, cut down to the budget. Changes no number beyond what rounding does at ReLUs.
    budget_mib
        Memory for results and a pass together.
    cotangents : {"same", "bfloat16"}
        The type in which gradients go from cuts to the input, through its last 40 convolutions: that of the network, or
        bfloat16, which is faster on processors that multiply it. What is computed forward, which ReLUs are open, and
        the map through all units stay as they are; others of a DenseNet-121 were seen to change by less than 1 %.

    Returns
    -------
    Dataset over (sample, vector, …)
        ``integrated_gradients`` (sample, vector, …): (x − baseline) times the integral, signed; ``gradient``: at the
        sample; ``input`` (sample, …); all float32. The last dims are ``channel``, ``y``, ``x`` for images. ``target``
        (sample,) int64; ``output`` and ``baseline_output`` (sample,) float64, what is explained at the two ends.
        Attributes count passes, as `Cost` does, with ``batch_size`` as it was used, and name the type of
        ``cotangents`` and how many of a point were followed back ``together``. Without steps there are neither
        ``integrated_gradients`` nor ``baseline_output``.

    Raises
    ------
    SchemaError
        If an option is unknown, a mask does not fit its cut, or the budget does not hold one point.
    DataError
        If samples, targets or the baseline do not fit the network or each other.
    ModelMismatchError
        If the network does not give a row of logits per sample, a margin is asked of a single class, or bfloat16 of a
        network whose gradients cannot be followed back together.
    NonFiniteError
        If a gradient or an output is NaN or infinite, naming the sample by its number.

    References
    ----------
    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", eq. 1; Simonyan et al. 2014.
    """
    options = (explain, EXPLAINED, "explain"), (rule, RULES, "rule"), (cotangents, COTANGENTS, "cotangents")
    for value, known, name in options:
        if value not in known:
            raise SchemaError(f"{name}={value!r} is unknown; {nearest(str(value), known)}")
    alphas, weights = quadrature(steps, rule) if steps else (np.zeros(0), np.zeros(0))
    names = plan.chosen(vectors)
    layers, rows = _require_fit(x, cuts, plan, names)
    dtype = _dtype(x, cuts, rows, cotangents)
    extra = sum(p.numel() for p in module.parameters()) * dtype.itemsize * (dtype != x.dtype)
    needs = _Needs(x, cuts, len(names) * (1 + bool(steps)), len(rows), extra)
    size, together = needs.fitting(batch_size, budget_mib)
    # each sample as it is comes first: it says what is predicted
    path = np.append(1.0, alphas), np.append(0.0, weights)
    with differentiable(module):
        x = x.detach()
        start = _start(x, baseline)
        constants = Constants(dtype), Constants(x.dtype)
        run = _Run(
            module, layers, rows, WHOLE in names, x, start, *path, explain, targets_of(target, x), together, constants
        )
        total = len(x) * len(run.line)
        for begin in range(0, total, size):
            run.batch(np.arange(begin, min(begin + size, total)))
        if run.integral is not None:
            run.baselines(size)
            run.integral *= (x - start).float()
            _require_finite(run.integral)
    _require_finite(run.at_sample)
    _require_finite(run.ends[..., None])
    dims = _DIMS.get(x.ndim, tuple(f"input_{axis}" for axis in range(x.ndim - 1)))
    data: dict[str, Any] = {
        "gradient": (("sample", "vector", *dims), _numpy(run.at_sample.transpose(0, 1))),
        "input": (("sample", *dims), _numpy(x.float().clone())),
        "target": ("sample", _numpy(run.targets)),
        "output": ("sample", _numpy(run.ends[1])),
    }
    if run.integral is not None:
        data["integrated_gradients"] = (("sample", "vector", *dims), _numpy(run.integral.transpose(0, 1)))
        data["baseline_output"] = ("sample", _numpy(run.ends[0]))
    cost = Cost(run.forwards, run.baseline_forwards, run.backwards, run.partial_backwards)
    how = {"cotangents": str(dtype).removeprefix("torch."), "together": together}
    attrs = cost._asdict() | {"batch_size": size, "explain": explain, "steps": steps, "rule": rule} | how
    return xr.Dataset(data, coords={"vector": np.array(names, dtype=object)}, attrs=attrs)


@dataclass
class _Run:
    """What is gathered over the batches of points, and how often the network was run for it."""

    module: nn.Module
    layers: Sequence[Layer]
    vectors: Sequence[tuple[int, Tensor]]  # place of the cut in the layers, units
    whole: bool
    x: Tensor
    start: Tensor  # (1 or B, …)
    line: Array
    weights: Array
    explain: Explained
    targets: Tensor  # (B,); -1 until it is predicted
    together: int  # gradients of a point; 0 for autograd's way, one after the other
    constants: tuple[Constants, Constants]
    forwards: int = 0
    baseline_forwards: int = 0
    backwards: int = 0
    partial_backwards: int = 0

    def __post_init__(self) -> None:
        shape = (len(self.vectors) + self.whole, *self.x.shape)
        self.at_sample = torch.zeros(shape, dtype=torch.float32, device=self.x.device)
        self.integral = torch.zeros_like(self.at_sample) if len(self.line) > 1 else None
        self.ends = torch.zeros((2, len(self.x)), dtype=torch.float64, device=self.x.device)  # explained: start, sample
        # where rounding is coarse, the smaller part is followed, and most units are the whole without it
        most = {n for n, (_, units) in enumerate(self.vectors) if 2 * int(units.sum()) > len(units)}
        self.rest = most if self.constants[0].dtype != self.x.dtype else set()

    def batch(self, places: Array) -> None:
        """Take in some of the points, numbered sample by sample."""
        samples, steps = np.divmod(places, len(self.line))
        rows = torch.as_tensor(samples, device=self.x.device)
        first = torch.as_tensor(steps == 0, device=self.x.device)
        through = Through(self.module, self.layers, self._points(rows, steps, first))
        self.forwards += 1
        own = rows[first]
        new = self.targets[own] < 0
        self.targets[own[new]] = through.logits[first][new].argmax(dim=1)
        explained = explained_of(through.logits, self.targets[rows], self.explain)
        self.ends[1, own] = explained[first].detach().double()
        whole = through.back(explained, whole=self.whole or bool(self.rest), last=not self.vectors)
        self.backwards += 1
        with torch.no_grad():
            if self.whole:
                assert whole is not None
                self._add(Piece([0], whole[None]), samples, steps)
            for piece in self._parts(through, whole if self.rest else None):
                self._add(piece, samples, steps)
                self.partial_backwards += len(piece.vectors)

    def _parts(self, through: Through, whole: Tensor | None) -> Iterator[Piece]:
        """Follow the gradients of the vectors, numbered with the whole one."""
        if self.together and self.vectors:
            followed = [(cut, 1 - u if n in self.rest else u) for n, (cut, u) in enumerate(self.vectors)]
            for piece in through.parts(followed, self.together, self.constants):
                rest = [row for row, number in enumerate(piece.vectors) if number in self.rest]
                numbers = [number + self.whole for number in piece.vectors]
                yield replace(piece, vectors=numbers, rest=rest, whole=whole)
        else:
            for number, (cut, units) in enumerate(self.vectors, int(self.whole)):
                yield Piece([number], through.part(cut, units)[None])

    def baselines(self, size: int) -> None:
        """Find what is explained where the paths start."""
        found = []
        with torch.no_grad():
            for start in torch.split(self.start, size):
                found.append(logits_of(self.module(start), len(start), 1))
                self.baseline_forwards += 1
        logits = torch.cat(found).expand(len(self.x), -1)
        self.ends[0] = explained_of(logits, self.targets, self.explain).double()

    def _points(self, rows: Tensor, steps: Array, first: Tensor) -> Tensor:
        alphas = torch.as_tensor(self.line[steps], dtype=self.x.dtype, device=self.x.device)
        starts = self.start.expand_as(self.x)[rows]
        points = starts + alphas.view(-1, *[1] * (self.x.ndim - 1)) * (self.x[rows] - starts)
        points[first] = self.x[rows[first]]
        return points

    def _add(self, piece: Piece, samples: Array, steps: Array) -> None:
        vectors = list(piece.vectors)
        for sample in np.unique(samples).tolist():
            begin, end = np.searchsorted(samples, [sample, sample + 1]).tolist()
            if self.integral is not None:
                weights = torch.as_tensor(self.weights[steps[begin:end]], dtype=torch.float32, device=self.x.device)
                self.integral[vectors, sample] += piece.summed(begin, end, weights)
            if steps[begin] == 0:
                self.at_sample[vectors, sample] = piece.at(begin).float()


def explained_of(logits: Tensor, targets: Tensor, explain: Explained) -> Tensor:
    """Return what is explained of each row of logits, (P,)."""
    classes, column = logits.shape[1], targets[:, None]
    if int(targets.max()) >= classes:
        raise DataError(f"target {int(targets.max())} was given, and the network has classes 0 to {classes - 1}")
    if explain == "log_prob":
        logits = F.log_softmax(logits, dim=1)
    own = logits.gather(1, column)[:, 0]
    if explain != "margin":
        return own
    if classes < 2:
        raise ModelMismatchError("a margin needs a second class, and the network has one; explain its logit")
    return own - logits.scatter(1, column, -torch.inf).amax(dim=1)


def _require_fit(
    x: Tensor, cuts: Cuts, plan: Plan, names: Sequence[str]
) -> tuple[list[Layer], list[tuple[int, Tensor]]]:
    """Return the cuts of the named vectors, and these vectors with the place of their cut."""
    require_samples(x)
    if tuple(x.shape[1:]) != cuts.shape:
        raise DataError(
            f"found samples of shape {tuple(x.shape[1:])}, and cuts of a network that is shown {cuts.shape}; find the "
            "cuts with one of these samples"
        )
    known = {layer.name: layer for layer in cuts.layers}
    layers: list[Layer] = []
    vectors: list[tuple[int, Tensor]] = []
    labels = iter(plan.chosen()[plan.whole :])
    for cut, rows in plan.vectors.items():
        if cut not in known:
            raise SchemaError(f"the plan has masks of {cut!r}, which was not found as a cut; {nearest(cut, known)}")
        if rows.shape[1] != known[cut].units:
            raise SchemaError(
                f"the plan has masks of {rows.shape[1]} units of {cut!r}, which has {known[cut].units}; they are "
                "clusters of another layer or network: plan with those of this one"
            )
        wanted = [row for row in rows if next(labels) in names]
        if wanted:
            vectors += [(len(layers), torch.as_tensor(row).to(x)) for row in wanted]
            layers.append(known[cut])
    return layers, vectors


def _start(x: Tensor, baseline: float | Tensor) -> Tensor:
    """Return where paths start, (1, …) for all samples or (B, …)."""
    start = torch.as_tensor(baseline).detach().to(x)
    if start.ndim == 0:
        return start.expand(1, *x.shape[1:])
    start = start if start.ndim == x.ndim else start[None]
    if start.shape[1:] != x.shape[1:] or len(start) not in (1, len(x)):
        raise DataError(
            f"found a baseline of shape {tuple(start.shape)} for samples of shape {tuple(x.shape)}; give a number, one "
            "sample, or one for each"
        )
    return start


def targets_of(target: Any, x: Tensor) -> Tensor:
    """Return the class of each sample, (B,) int64, −1 where it is to be predicted."""
    if isinstance(target, str):
        if target != "predicted":
            raise SchemaError(f"target={target!r} is unknown; give 'predicted', or the class of each sample")
        return torch.full((len(x),), -1, device=x.device)
    given = torch.as_tensor(target, device=x.device)
    if given.shape != (len(x),) or given.is_floating_point() or (given < 0).any():
        raise DataError(
            f"found targets of {str(given.dtype).removeprefix('torch.')} and shape {tuple(given.shape)} for {len(x)} "
            "samples, and a class from 0 for each was needed"
        )
    return given.long().clone()


def _dtype(x: Tensor, cuts: Cuts, vectors: Sequence[Any], cotangents: Cotangents) -> torch.dtype:
    """Return the type in which gradients are followed from cuts to the input."""
    if cotangents == "same" or not vectors:
        return x.dtype
    if cuts.together is None:
        raise ModelMismatchError(
            "cotangents='bfloat16' was given, and gradients of this network are followed back by autograd alone, in "
            "the network's own type; leave it out"
        )
    return torch.bfloat16


@dataclass(frozen=True)
class _Needs:
    """What a measurement holds in memory."""

    x: Tensor
    cuts: Cuts
    maps: int
    vectors: int
    extra: int  # bytes

    def fitting(self, batch_size: int, budget_mib: float) -> tuple[int, int]:
        """Return how many points fit into a pass beside the results, and gradients of each that go back together."""
        if batch_size < 1:
            raise SchemaError(f"batch_size={batch_size} is no number of points; give 1 or more")
        results = self.maps * len(self.x) * self._sample + self.extra
        room = budget_mib * 2**20 - results
        rows = min(self.vectors, _ROWS) if self.cuts.together else 0
        if room < self._point(rows):
            rows = min(rows, 1)
        point = self._point(rows)
        size = min(batch_size, int(room // point))
        if size < 1:
            raise SchemaError(
                f"budget_mib={budget_mib:g} was given, and {(results + point) / 2**20:.1f} are needed: "
                f"{results / 2**20:.1f} for the maps of {len(self.x)} samples, and {point / 2**20:.1f} for one point; "
                "raise it, or give fewer samples at a time"
            )
        while rows and rows < min(self.vectors, -(-_GRADIENTS // size)) and size * self._point(rows + 1) <= room:
            rows += 1
        return size, rows

    @property
    def _sample(self) -> int:
        return self.x[0].numel() * 4

    def _point(self, rows: int) -> float:
        held, together = self.cuts.nbytes, self.cuts.together
        if together is not None and rows:
            held = max(held, together.point + rows * together.row)
        return held * _SPARE + (6 + rows) * self._sample


def _require_finite(found: Tensor) -> None:
    """Check an array (vectors, B, …)."""
    finite = found.isfinite().transpose(0, 1).flatten(1).all(dim=1)
    if not finite.all():
        raise NonFiniteError(
            f"sample number {int((~finite).nonzero()[0, 0])} has a gradient or an output of NaN or infinity, and "
            "finite numbers were needed; leave it, or the checkpoint, out"
        )


def _numpy(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found
