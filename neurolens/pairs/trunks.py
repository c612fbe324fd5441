"""A network of a study as far as its attention pool: the maps that heat maps and segmentation are made from."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from neurolens.errors import DataError, MissingCheckpointError, ModelMismatchError, SchemaError
from neurolens.pairs.adapters import pool_of, timm_pool, timm_pools
from neurolens.pairs.patch_logits import head_similarity, pair_logits, value_logits
from neurolens.pairs.pool import Pool, as_array, resampled

if TYPE_CHECKING:
    import torch

    from neurolens.data import SampleSet
    from neurolens.models import Network
    from neurolens.study import Study

Array = npt.NDArray[Any]
_AT_ONCE = 16  # images a pass


class _ReachedError(Exception):
    """A forward is at its pool; what follows is not needed."""


class Trunk:
    """What a network does to images before its attention pool, with the weights that it has now.

    The network is copied: eval mode, float32, on the device. Images of any size that the convolutions take will do.

    Parameters
    ----------
    network : models.Network
        Filled, as `trunk_of` makes it of a study.
    module
        Path of the pool in the network, where there are several.
    device
        Where to run it, as torch names it.

    Attributes
    ----------
    pool : Pool
        Of the size that the network was made for; see `pool_for`.

    Raises
    ------
    SchemaError
        If the network has no attention pool, as a ViT.
    StudyError
        If it has several, and none is named.
    ModelMismatchError
        If a batch norm without running statistics would make an image's maps depend on its batch.
    """

    def __init__(self, network: "Network", *, module: str | None = None, device: "str | torch.device" = "cpu") -> None:
        import torch

        from neurolens.pairs.showing import pool_path
        from neurolens.units import running

        path = pool_path(network.module, module)
        with running.prepared(network, device=device, bf16=False) as lent:
            kept = copy.deepcopy(lent) if lent is network.module else lent
        self._module: torch.nn.Module = kept.float().eval()
        self._network, self._device, self._path = network, torch.device(device), path
        self._pooling = self._module.get_submodule(path)
        self.pool: Pool = pool_of(self._pooling)

    def pool_for(self, grid: tuple[int, int]) -> Pool:
        """Return the pool for maps of other rows and columns, its positions interpolated."""
        if grid == self.pool.grid:
            return self.pool
        return timm_pool(self._pooling, grid=grid) if timm_pools(self._pooling) else resampled(self.pool, grid)

    def normalised(self, pixels: npt.ArrayLike) -> Array:
        """Return an image as the network takes it, in its own size: no resizing, no crop.

        Parameters
        ----------
        pixels : uint8, (y, x, channel)
            As `LabelledImages.image` gives them; colours are turned to grey, or grey repeated, where the network wants
            it.

        Returns
        -------
        float32, (channel, y, x)

        Raises
        ------
        DataError
            If it is no image.
        """
        import torch

        from neurolens.data.batching import fit_channels, normalisation, normalise

        given = np.asarray(pixels)
        if given.ndim != 3 or given.dtype != np.uint8:
            raise DataError(f"found {given.dtype} of shape {given.shape}, and uint8 (y, x, channel) was needed")
        fitted = np.array(fit_channels(given, self._network.channels).transpose(2, 0, 1))
        scale, shift = normalisation(self._network.preprocessing, torch.device("cpu"))
        found: Array = normalise(torch.from_numpy(fitted)[None], scale, shift)[0].numpy()
        return found

    def maps(self, images: npt.ArrayLike) -> xr.DataArray:
        """Return the maps that go into the pool. **Eager**.

        Parameters
        ----------
        images : (sample, channel, y, x)
            As `normalised` gives them, or windows of them.

        Returns
        -------
        array (sample, unit, y, x), float32

        Raises
        ------
        SchemaError
            If the images are not of that shape.
        ModelMismatchError
            If the network does not give its pool maps.
        """
        import torch

        given = np.asarray(images)
        wanted = self._network.channels
        if given.ndim != 4 or given.shape[1] != wanted or not len(given):
            raise SchemaError(f"found images of shape {given.shape}, and (sample, {wanted}, y, x) was needed")
        parts = [
            self._reached(torch.from_numpy(np.ascontiguousarray(given[at : at + _AT_ONCE], dtype=np.float32)))
            for at in range(0, len(given), _AT_ONCE)
        ]
        return xr.DataArray(np.concatenate(parts), dims=("sample", "unit", "y", "x"), name="map")

    def maps_of(self, samples: "SampleSet", positions: Sequence[int] | npt.NDArray[np.integer[Any]]) -> xr.DataArray:
        """Return the maps of a few images of a data set, shown as when they were measured. **Eager**.

        Parameters
        ----------
        samples
            Of `neurolens.data.opening.study_samples`.
        positions
            Which images, in this order.

        Returns
        -------
        array (sample, unit, y, x), float32, with the ids of the images

        Raises
        ------
        DataError
            If there is no image at a position.
        ModelMismatchError
            If the network does not give its pool maps.
        """
        from neurolens.data import shown

        wanted = np.asarray(positions, dtype=np.int64).reshape(-1)
        if not len(wanted) or wanted.min() < 0 or wanted.max() >= len(samples):
            raise DataError(f"found positions {wanted.tolist()} of {len(samples)} images; count them from 0 on")
        at, places = np.unique(wanted, return_inverse=True)
        found: dict[int, Array] = {}
        for batch in shown(samples, self._network, batch_size=_AT_ONCE, device=self._device, indices=at):
            found |= dict(zip(batch.indices.tolist(), self._reached(batch.args[0]), strict=True))
        maps = np.stack([found[one] for one in at.tolist()])[places]
        ids = np.asarray(samples.ids)[wanted]
        return xr.DataArray(maps, dims=("sample", "unit", "y", "x"), coords={"sample": ids}, name="map")

    def _reached(self, images: "torch.Tensor") -> Array:
        import torch

        from neurolens.samples.softmax import full_precision

        given: list[Any] = []

        def before(pooling: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append(args[0] if args else next(iter(kwargs.values()), None))
            raise _ReachedError

        run = getattr(self._module, "encode_image", None) or self._module
        hook = self._pooling.register_forward_pre_hook(before, with_kwargs=True)
        with hook, torch.no_grad(), full_precision(), contextlib.suppress(_ReachedError):
            run(images.to(self._device))
        shape = (len(images), self.pool.units)
        if not given or not isinstance(given[0], torch.Tensor) or given[0].ndim != 4 or given[0].shape[:2] != shape:
            found = "nothing" if not given else f"{getattr(given[0], 'shape', type(given[0]).__name__)}"
            raise ModelMismatchError(
                f"the pool {self._path!r} is given {found}, and maps ({shape[0]}, {shape[1]}, y, x) were needed, one "
                "per image; name another pool: module="
            )
        return as_array(given[0])


def trunk_of(
    study: "Study | str | Path",
    *,
    epoch: int | None = None,
    step: int | None = None,
    device: "str | torch.device" = "cpu",
) -> Trunk:
    """Make a study's network with the weights of one of its checkpoints, as far as its pool.

    Parameters
    ----------
    study
        The study, or its file.
    epoch, step
        The checkpoint; by default the last one.
    device
        Where to run it, as torch names it.

    Raises
    ------
    MissingCheckpointError
        If there is no such checkpoint, or there are none.
    CheckpointError, ModelMismatchError, NonFiniteError
        If it cannot be read, does not fit the network, or holds NaN.
    SchemaError, StudyError
        As `Trunk`; or if both an epoch and a step are given.
    """
    from neurolens import checkpoints, models
    from neurolens.study import Study, load_study

    if epoch is not None and step is not None:
        raise SchemaError(f"found epoch={epoch} and step={step}; pass one of them")
    table = study if isinstance(study, Study) else load_study(study)
    series = checkpoints.discover(table.checkpoints, source=table.model.transformers)
    asked, label = ("step", step) if epoch is None else ("epoch", epoch)
    held = list(series.checkpoints)
    if label is not None:
        held = [one for one in held if getattr(one, asked) == label]
    if not held:
        known = [getattr(one, asked) for one in series.checkpoints]
        raise MissingCheckpointError(f"there is no {asked} {label} among the study's checkpoints; there is {known}")
    chosen = held[-1]
    network = models.build(table.model)
    checkpoints.load(network.module, chosen.path, table.checkpoints, digest=chosen.digest)
    return Trunk(network, module=table.pools.module if table.pools is not None else None, device=device)


def segmenter(
    trunk: Trunk,
    texts: Any,
    pairs: xr.DataArray | None = None,
    *,
    bias: bool = True,
    repair: bool | None = None,
    attention: Sequence[Literal["q", "k", "v"]] = (),
    positions: bool = True,
) -> Callable[[Array], xr.DataArray]:
    """Return what `segment` asks of windows: from their pixels to the logits of their patches.

    Parameters
    ----------
    trunk
        Of `trunk_of`.
    texts : (phrase, feature)
        Embeddings of the classes.
    pairs : bool, (phrase, unit, head), optional
        Of `class_pairs`. Absent: a baseline without pairs, MaskCLIP, or self-self attention with ``attention``.
    bias
        As of `head_similarity`, with pairs.
    repair
        Mend the last patch; by default with pairs, as the reference does, and not without them.
    attention, positions
        As of `value_logits`, without pairs.

    Returns
    -------
    function : (sample, channel, y, x) → array (sample, phrase, y, x)
        Of windows of one size; the pool's positions are interpolated for their maps, where these have another size.

    Raises
    ------
    SchemaError
        If an option is of the other way; when called, as `head_similarity`, `pair_logits` and `value_logits`.
    """
    if pairs is not None and (attention or not positions):
        raise SchemaError("attention and positions are of baselines; leave pairs out, or these")
    if pairs is None and not bias:
        raise SchemaError("bias=False is of pairs, and there are none; pass pairs: class_pairs(…)")
    mended = pairs is not None if repair is None else repair
    fitted: dict[tuple[int, int], Pool] = {}

    def logits_of(windows: Array) -> xr.DataArray:
        maps = trunk.maps(windows).to_numpy()
        grid = (maps.shape[2], maps.shape[3])
        if grid not in fitted:
            fitted[grid] = trunk.pool_for(grid)
        pool = fitted[grid]
        if pairs is None:
            return value_logits(pool, maps, texts, attention=attention, positions=positions, repair=mended)
        similarity = head_similarity(pool, maps, texts, bias=bias, repair=mended)
        return pair_logits(similarity, maps, pairs, repair=mended)

    return logits_of
