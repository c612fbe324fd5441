"""An attention pool as its matrices: what turns the last maps of a network into one embedding."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from neurolens.errors import NonFiniteError, SchemaError

Array = npt.NDArray[Any]
_AT_ONCE = 8  # images of which all keys and values are held


@dataclass(frozen=True, eq=False, repr=False)
class Pool:
    """The matrices of an attention pool: C units, H heads of D dimensions each, T = 1 + patches tokens, O features.

    Token 0 asks, and all tokens answer; it is the mean of the patches, or ``class_token`` where the pool has one. The
    arrays are checked, and kept as read-only float64 where they were float64, else float32.

    Parameters
    ----------
    W_q, W_k, W_v : (H·D, C)
        Queries, keys and values; head h has the rows from h·D on.
    b_q, b_k, b_v : (H·D,)
        Their biases. ``b_k`` shifts all logits of a head alike and changes nothing.
    W_o : (O, H·D)
        From the values to the embedding; head h has the columns from h·D on.
    b_o : (O,)
        Its bias.
    positions : (T, C)
        Added to the tokens; row 0 is that of token 0, the others go through the grid row by row.
    heads : int
        H, which divides the rows of the queries.
    grid : (int, int), optional
        Rows and columns of patches; by default a square.
    class_token : (C,), optional
        Token 0 where it is learned and not the mean.

    Raises
    ------
    SchemaError
        If a shape does not fit the others.
    NonFiniteError
        If a number is NaN or infinite.
    """

    W_q: Array
    b_q: Array
    W_k: Array
    b_k: Array
    W_v: Array
    b_v: Array
    W_o: Array
    b_o: Array
    positions: Array
    heads: int
    grid: tuple[int, int] = (0, 0)
    class_token: Array | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("heads", "grid")}
        arrays = {name: as_array(value) for name, value in given.items() if value is not None}
        double = all(a.dtype == np.float64 for a in arrays.values())
        for name, array in arrays.items():
            if array.dtype.kind not in "fiu":
                raise SchemaError(f"{name} is of dtype {array.dtype}, and real numbers were needed; give an array")
            kept = np.array(array, dtype=np.float64 if double else np.float32, order="C")
            if not np.isfinite(kept).all():
                raise NonFiniteError(f"{name} of the pool has NaN or infinity; read the weights again")
            kept.flags.writeable = False
            object.__setattr__(self, name, kept)
        self._check_shapes()
        patches = len(self.positions) - 1
        grid = tuple(self.grid) if any(self.grid) else (round(patches**0.5),) * 2
        if len(grid) != 2 or grid[0] * grid[1] != patches:
            raise SchemaError(
                f"positions has {patches + 1} rows: token 0 and {patches} patches, which are no grid of {grid[0]} by "
                f"{grid[-1]}; give grid=(rows, columns)"
            )
        object.__setattr__(self, "grid", (int(grid[0]), int(grid[1])))
        object.__setattr__(self, "heads", int(self.heads))

    def _check_shapes(self) -> None:
        for name, ndim in {"W_q": 2, "W_o": 2, "positions": 2}.items():
            if getattr(self, name).ndim != ndim:
                raise SchemaError(f"{name} has shape {getattr(self, name).shape}, and a matrix was needed")
        width, units = self.W_q.shape
        if isinstance(self.heads, bool) or int(self.heads) != self.heads or self.heads < 1 or width % self.heads:
            raise SchemaError(f"{self.heads} heads do not divide the {width} rows of W_q; CLIP's pools have {width}/64")
        features = self.W_o.shape[0]
        needed: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("W_k", "W_v"), (width, units)),
            **dict.fromkeys(("b_q", "b_k", "b_v"), (width,)),
            "W_o": (features, width),
            "b_o": (features,),
            "positions": (len(self.positions), units),
            "class_token": (units,),
        }
        for name, shape in needed.items():
            found = getattr(self, name)
            if found is not None and found.shape != shape:
                raise SchemaError(
                    f"{name} has shape {found.shape}, and {shape} was needed by W_q {self.W_q.shape}, W_o "
                    f"{self.W_o.shape} and positions {self.positions.shape}; a matrix maps a column, as torch's "
                    "Linear.weight does: is it transposed?"
                )
        if len(self.positions) < 2:
            raise SchemaError("positions has no row for a patch; token 0 and at least one patch were needed")

    def __repr__(self) -> str:
        token = "" if self.class_token is None else ", a class token"
        return (
            f"<Pool of {self.units} units, {self.heads} heads of {self.head_dim} dims, {self.features} features, "
            f"{self.grid[0]} by {self.grid[1]} patches{token}, {self.dtype}>"
        )

    @property
    def units(self) -> int:
        """C: channels of the last maps."""
        return int(self.W_q.shape[1])

    @property
    def head_dim(self) -> int:
        """D: dimensions of one head."""
        return int(self.W_q.shape[0] // self.heads)

    @property
    def features(self) -> int:
        """O: dimensions of the embedding."""
        return int(self.W_o.shape[0])

    @property
    def tokens(self) -> int:
        """T: token 0 and the patches."""
        return int(self.positions.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, or float64 where all of it was."""
        return self.W_q.dtype


def resampled(pool: Pool, grid: tuple[int, int]) -> Pool:
    """Return the pool for maps of another size: positions are interpolated bilinearly, that of token 0 is kept.

    Parameters
    ----------
    pool
        Of maps of ``pool.grid``.
    grid : (int, int)
        Rows and columns of the maps to come.

    Returns
    -------
    Pool
        The same one where the grid is its own.

    Raises
    ------
    SchemaError
        If the grid has no row or no column.

    Notes
    -----
    As ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``, the way in which the authors of CLIP
    made their network for larger images (openai/CLIP, issue 214). timm's pool interpolates by cubic curves by itself;
    `timm_pool` does as it does.
    """
    rows, columns = (int(n) for n in grid)
    if rows < 1 or columns < 1:
        raise SchemaError(f"a grid of {rows} by {columns} has no patch; give the height and width of the maps")
    if (rows, columns) == pool.grid:
        return pool
    patches = pool.positions[1:].reshape(*pool.grid, pool.units).astype(np.float64)
    patches = np.einsum("ri,ijc->rjc", _bilinear(pool.grid[0], rows), patches)
    patches = np.einsum("sj,rjc->rsc", _bilinear(pool.grid[1], columns), patches)
    positions = np.concatenate([pool.positions[:1], patches.reshape(-1, pool.units).astype(pool.dtype)])
    return replace(pool, positions=positions, grid=(rows, columns))


def _bilinear(old: int, new: int) -> Array:
    """Return the weights (new, old) of linear interpolation between the centres of cells."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(centres).astype(int)
    high = np.minimum(low + 1, old - 1)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1 - (centres - low))
    np.add.at(weights, (np.arange(new), high), centres - low)
    return weights


def image_embeddings(pool: Pool, maps: Any) -> Array:
    """Run the pool in its textbook form: a key and a value for every token. Slow, and what `scalars` is checked by.

    Parameters
    ----------
    pool
        Of maps of ``pool.grid``.
    maps : (B, C, h, w)
        Of the last block, as an array or a tensor.

    Returns
    -------
    array (B, O)
        Not normalised.

    Raises
    ------
    SchemaError
        If the maps are not those of the pool.
    """
    given = checked_maps(pool, maps)
    out = np.empty((len(given), pool.features), np.result_type(pool.dtype, given.dtype))
    for start in range(0, len(given), _AT_ONCE):
        x = tokens_of(pool, given[start : start + _AT_ONCE])
        split = (*x.shape[:2], pool.heads, pool.head_dim)
        query = (x[:, 0] @ pool.W_q.T + pool.b_q).reshape(len(x), *split[2:])
        flat = x.reshape(-1, pool.units)
        key, value = ((flat @ w.T + b).reshape(split) for w, b in ((pool.W_k, pool.b_k), (pool.W_v, pool.b_v)))
        attention = softmax(np.einsum("bhd,bthd->bht", query, key) / np.sqrt(pool.head_dim))
        mixed = np.einsum("bht,bthd->bhd", attention, value).reshape(len(x), -1)
        out[start : start + _AT_ONCE] = mixed @ pool.W_o.T + pool.b_o
    return out


def checked_maps(pool: Pool, maps: Any) -> Array:
    """Return maps (B, C, h, w) as an array of floats, or say why they are not those of the pool."""
    found = as_array(maps)
    wanted = (pool.units, *pool.grid)
    if found.ndim != 4 or found.dtype.kind not in "fiu" or found.shape[1] != pool.units:
        raise SchemaError(
            f"found maps of {found.dtype} and shape {found.shape}, and numbers (sample, {', '.join(map(str, wanted))}) "
            "were needed: the maps that go into the pool, channels first"
        )
    if found.shape[2:] != pool.grid:
        raise SchemaError(
            f"found maps of {found.shape[2]} by {found.shape[3]}, and the pool has positions for {pool.grid[0]} by "
            f"{pool.grid[1]}; pass resampled(pool, {found.shape[2:]}), or images of the size that it was trained on"
        )
    return found if found.dtype in (np.float32, np.float64) else found.astype(np.float32)


def as_array(given: Any) -> Array:
    """Return an array, or a tensor of any device as one; half precision becomes float32."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.numpy() if str(given.dtype) in ("torch.float32", "torch.float64") else given.float().numpy()
    return np.asarray(given)


def tokens_of(pool: Pool, maps: Array) -> Array:
    """Return the tokens x (B, T, C) of maps (B, C, h, w): token 0, then the patches, with their positions."""
    x = np.empty((len(maps), pool.tokens, pool.units), np.result_type(pool.dtype, maps.dtype))
    x[:, 1:] = maps.reshape(len(maps), pool.units, -1).transpose(0, 2, 1)
    x[:, 0] = x[:, 1:].mean(axis=1) if pool.class_token is None else pool.class_token
    x += pool.positions
    return x


def softmax(logits: Array) -> Array:
    """Return the softmax along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
