"""Images shown to a network as far as its attention pool: the maps that go in, and the scalars that follow.

Eval mode, no gradients, no augmentation, float32. Of an image that is shown, nothing depends on the images beside it
but for what the network itself computes differently in another batch (float32 rounding).
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor, nn

from neurolens.errors import ModelMismatchError, NonFiniteError, SchemaError, StudyError, nearest
from neurolens.pairs.adapters import attention_pools, no_pool, pool_of, timm_pool, timm_pools
from neurolens.pairs.measure import distance, scalars
from neurolens.pairs.pool import Pool, as_array, resampled
from neurolens.units import running

if TYPE_CHECKING:
    from neurolens.data import SampleSet, Shown
    from neurolens.models import Network
    from neurolens.study import Pools

Array = npt.NDArray[Any]

AT_ONCE = 16
"""Images of which the tokens are held at once."""


class _EndedError(Exception):
    """A forward is over: the pool cannot take the maps, and what follows it is not needed."""


class ShownPool:
    """The pool of a prepared network, and what goes into it.

    Parameters
    ----------
    network : models.Network
        What the module is of: preprocessing and input.
    module
        The module, in eval mode and float32, on the device.
    path
        Where the pool is in the module.
    table : study.Pools
        Whether positions may be interpolated, and how far sums may be off.
    """

    def __init__(
        self, network: "Network", module: nn.Module, path: str, table: "Pools", device: str | torch.device
    ) -> None:
        self._network, self._module, self._table, self._device = network, module, table, torch.device(device)
        self.path, self._pooling = path, module.get_submodule(path)
        self.own = pool_of(self._pooling)
        self._fitted = {self.own.grid: self.own}

    def pool(self, samples: "SampleSet") -> Pool:
        """Return the pool for maps of the size that the first image of a set gives.

        Raises
        ------
        DataError
            If the samples are no images, or there are none.
        ModelMismatchError
            If the network does not give its pool maps.
        StudyError
            If the maps have another size than the pool's, and positions may not be interpolated.
        """
        batch = running.first_batch(self._network, samples, self._module, device=self._device)
        return self._pool_of(self._pass(batch)[0])

    def measured(
        self, samples: "SampleSet", *, batch_size: int, split: bool = False
    ) -> Iterator[tuple[npt.NDArray[np.int64], xr.Dataset]]:
        """Show images, and yield positions in the set with what `scalars` gives at them, batch by batch.

        All images are checked against what the network puts out; where the pool's positions had to be interpolated,
        which the network itself cannot do, against the textbook form of the pool.

        Parameters
        ----------
        batch_size
            Images a pass, cut to what suits a CPU's caches.
        split
            Also the parts of the scalars.

        Raises
        ------
        As `pool`, and
        ModelMismatchError
            If the contributions do not add up to the embedding, naming the image; or the network's embedding of images
            is not what its pool puts out.
        NonFiniteError
            If a map has NaN or infinity, naming the image.
        """
        from neurolens.data import shown

        size = min(batch_size, running.CPU_BATCH) if self._device.type == "cpu" else batch_size
        ids = np.asarray(samples.ids)
        for drawn in shown(samples, self._network, batch_size=size, device=self._device):
            maps, embedding = self._pass(running.laid_out(drawn, self._module))
            finite = torch.isfinite(maps).flatten(1).all(1).cpu().numpy()
            if not finite.all():
                raise NonFiniteError(
                    f"the maps that go into the pool {self.path!r} have NaN or infinity on sample "
                    f"{str(ids[drawn.indices[np.flatnonzero(~finite)[0]]])!r}, and finite numbers were needed; leave "
                    "the checkpoint out"
                )
            named = xr.DataArray(as_array(maps), dims=("sample", "unit", "y", "x"))
            yield (
                drawn.indices,
                scalars(
                    self._pool_of(maps),
                    named.assign_coords(sample=ids[drawn.indices]),
                    embedding=embedding,
                    split=split,
                    batch=AT_ONCE,
                    tolerance=self._table.tolerance,
                ),
            )

    def _pass(self, batch: "Shown") -> tuple[Tensor, Tensor | None]:
        """Return what goes into the pool, and what it puts out; None where positions had to be interpolated."""
        (x,) = batch.args
        given: list[Tensor] = []
        out: list[Any] = []

        def before(pooling: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append(self._checked(args[0] if args else next(iter(kwargs.values()), None), len(x)))
            if not self._runs(given[0]):
                raise _EndedError

        def after(pooling: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            out.append(output)

        encode = getattr(self._module, "encode_image", None)
        with contextlib.ExitStack() as hooks:
            for handle in (
                self._pooling.register_forward_pre_hook(before, with_kwargs=True),
                self._pooling.register_forward_hook(after),
            ):
                hooks.callback(handle.remove)
            with contextlib.suppress(_EndedError):
                whole = self._module(x) if encode is None else encode(x)
        if len(given) != 1:
            raise ModelMismatchError(
                f"the network ran its pool {self.path!r} {len(given)} times on a batch of images, and once was needed; "
                "name another pool: module in [pools]"
            )
        if not out:
            return given[0], None
        if encode is not None:
            self._require_own(whole, out[0])
        return given[0], out[0]

    def _checked(self, maps: Any, count: int) -> Tensor:
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != (count, self.own.units):
            found = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
            raise ModelMismatchError(
                f"the pool {self.path!r} is given {found}, and maps ({count}, {self.own.units}, y, x) were needed, one "
                "per image; name another pool: module in [pools]"
            )
        return maps

    def _require_own(self, embedding: Any, out: Tensor) -> None:
        """Refuse embeddings of images that are something else than the pool's: phrases would be held against those."""
        if isinstance(embedding, Tensor) and embedding.shape == out.shape:
            found, own = as_array(embedding), as_array(out)
            if not np.isfinite(own).all():  # which `measured` tells of
                return
            gap = float(distance(found, own).max())
            if gap < self._table.tolerance:
                return
            alike = np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
            how = f"they differ by {gap:.1e} of it" + (", and have length 1" if alike else "")
        else:
            how = f"it is {getattr(embedding, 'shape', type(embedding).__name__)} for {tuple(out.shape)}"
        raise ModelMismatchError(
            f"encode_image puts out something else than the pool {self.path!r} ({how}), and pairs add up to the "
            "latter's output; let encode_image return it as it is: lengths are brought to 1 where they have to be"
        )

    def _runs(self, maps: Tensor) -> bool:
        """Tell whether the network's own pool takes maps of this size."""
        return bool(timm_pools(self._pooling)) or self._pool_of(maps).positions is self.own.positions

    def _pool_of(self, maps: Tensor) -> Pool:
        """Return the pool for these maps."""
        grid = (int(maps.shape[2]), int(maps.shape[3]))
        if grid not in self._fitted:
            if timm_pools(self._pooling):  # which interpolates positions at each pass
                self._fitted[grid] = timm_pool(self._pooling, grid=grid)
            elif self._table.resample:
                self._fitted[grid] = resampled(self.own, grid)
            else:
                raise StudyError(
                    f"the maps that go into the pool {self.path!r} are {grid[0]} by {grid[1]}, and it has positions "
                    f"for {self.own.grid[0]} by {self.own.grid[1]}; show images of the size that it was trained on, or "
                    "set pools.resample = true to interpolate the positions"
                )
        return self._fitted[grid]


@contextlib.contextmanager
def shown_pool(network: "Network", table: "Pools", *, device: str | torch.device = "cpu") -> Iterator[ShownPool]:
    """Lend the pool of a network, in eval mode and float32, on the device; the network is left as it was.

    Raises
    ------
    ModelMismatchError
        If a batch norm without running statistics would make an image's maps depend on its batch.
    SchemaError
        If there is no attention pool in the network, as in a ViT.
    StudyError
        If there are several and ``table.module`` names none of them.
    """
    path = pool_path(network.module, table.module)
    with running.prepared(network, device=device, bf16=False) as module:
        tensors = [*module.parameters(), *module.buffers()]
        if any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors):
            module = copy.deepcopy(module).float()
        yield ShownPool(network, module, path, table, device)


def pool_path(module: nn.Module, name: str | None) -> str:
    """Return the path of the pool in a network: the only one, or the one that a study names.

    Raises
    ------
    SchemaError
        If there is no attention pool.
    StudyError
        If there are several, or none at that path.
    """
    pools = attention_pools(module)
    if not pools:
        raise SchemaError(no_pool(module, []))
    inside = [path for path in pools if name is None or path == name or path.startswith(f"{name}.")]
    if not inside:
        raise StudyError(f"pools.module is {name!r}, and there is no attention pool; {nearest(cast(str, name), pools)}")
    if len(inside) > 1:
        raise StudyError(
            f"found {len(inside)} attention pools, at {inside[:4]}, and one was needed; name it: "
            f"pools.module = {inside[0]!r}"
        )
    return inside[0]
