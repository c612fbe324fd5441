"""Pictures of shapes whose every concept is known by construction: colours, textures, objects, parts and scenes."""

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Grid = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.uint16]
T = TypeVar("T")


class Scene(NamedTuple):
    """What a scene prefers; none of the three alone tells it from the others."""

    name: str
    shapes: tuple[str, str]
    texture: str
    grounds: tuple[str, str]


COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 40),
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
}
SHAPES = {"circle": "core", "square": "corner", "triangle": "tip", "cross": "arm", "diamond": None}
"""Every shape and the part that only it has; each has a rim besides."""
TEXTURES = ("striped", "dotted", "chequered", "grid")
SKIES = ("white", "blue", "orange", "purple")
SCENES = (
    Scene("beach", ("circle", "triangle"), "dotted", ("yellow", "orange")),
    Scene("meadow", ("circle", "diamond"), "striped", ("green", "yellow")),
    Scene("market", ("square", "diamond"), "chequered", ("grey", "orange")),
    Scene("harbour", ("triangle", "square"), "striped", ("blue", "grey")),
    Scene("garden", ("cross", "circle"), "dotted", ("green", "purple")),
    Scene("court", ("cross", "square"), "grid", ("red", "grey")),
)
NAMES: dict[str, tuple[str, ...]] = {
    "color": tuple(f"{name}-c" for name in COLORS),
    "object": tuple(SHAPES),
    "part": (*(part for part in SHAPES.values() if part is not None), "rim"),
    "scene": tuple(f"{scene.name}-s" for scene in SCENES),
    "texture": TEXTURES,
}
"""The concepts of each category; numbers run through all of them, from 1."""
NUMBERS = {name: i for i, name in enumerate((name for names in NAMES.values() for name in names), 1)}

_NOISE = 6  # grey levels either way
_DARK_RIM, _DARK_PART = 0.78, 0.88
_PALETTE = np.array(list(COLORS.values()), dtype=np.float64)


@dataclass(frozen=True)
class Picture:
    """A picture and its labels.

    Attributes
    ----------
    pixels : (2 g, 2 g, 3) uint8
    planes : category to planes (g, g) of label numbers; a cell covers 2 x 2 pixels of one colour, up to noise
    scene : number of the label of the whole picture
    """

    pixels: npt.NDArray[np.uint8]
    planes: dict[str, list[Numbers]]
    scene: int


@dataclass
class _Canvas:
    """What each cell shows: a colour, a texture, an object, its part, its rim."""

    side: int
    color: Numbers = field(init=False)
    texture: Numbers = field(init=False)
    object: Numbers = field(init=False)
    part: Numbers = field(init=False)
    rim: Numbers = field(init=False)

    def __post_init__(self) -> None:
        for name in ("color", "texture", "object", "part", "rim"):
            setattr(self, name, np.zeros((self.side, self.side), dtype=np.uint16))

    def fill(self, where: Grid, color: str, second: str, texture: str | None) -> None:
        """Fill cells with a colour, or with a texture of two."""
        marked = where & pattern(texture, self.side) if texture is not None else np.zeros_like(where)
        self.color[where] = NUMBERS[f"{color}-c"]
        self.color[marked] = NUMBERS[f"{second}-c"]
        self.texture[where] = NUMBERS[texture] if texture is not None else 0

    def draw(self, shape: str, y: float, x: float, radius: float, color: str, second: str, texture: str | None) -> None:
        """Draw a shape over what is there."""
        mask, part = outline(shape, y, x, radius, self.side)
        self.fill(mask, color, second, texture)
        self.object[mask] = NUMBERS[shape]
        name = SHAPES[shape]
        self.part[mask] = 0
        self.rim[mask] = 0
        if name is not None:
            self.part[part] = NUMBERS[name]
        self.rim[mask & ~_inside(mask)] = NUMBERS["rim"]


def picture(number: int, *, seed: int, size: int) -> Picture:
    """Draw the picture of a number: the same whatever others are drawn.

    A plain sky, a ground with the scene's texture, and two to five shapes that do not touch. Scenes take turns; each
    prefers two shapes, a texture and two colours of the ground, and now and then has others.

    Parameters
    ----------
    size : pixel
        Side of the picture, even.
    """
    rng = np.random.default_rng([seed, number])
    scene = SCENES[number % len(SCENES)]
    canvas = _Canvas(size // 2)
    side = canvas.side
    ground = _either(rng, scene.grounds, 0.75, tuple(COLORS))
    sky = _either(rng, tuple(c for c in SKIES if c != ground), 1.0, SKIES)
    others = tuple(color for color in COLORS if color not in (ground, sky))
    texture = _either(rng, (scene.texture, scene.texture), 0.8, (*TEXTURES, None))
    horizon = int(side * (0.35 + 0.2 * rng.random()))
    below = np.arange(side)[:, None] >= np.full((1, side), horizon)
    canvas.fill(~below, sky, sky, None)
    canvas.fill(below, ground, others[rng.integers(len(others))], texture)
    placed: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(2, 6))):
        shape = _either(rng, scene.shapes, 0.85, tuple(SHAPES))
        place = _place(rng, side, placed)
        color, second = others[rng.integers(len(others))], others[rng.integers(len(others))]
        filling = TEXTURES[rng.integers(len(TEXTURES))] if rng.random() < 0.25 and second != color else None
        if place is not None:
            placed.append(place)
            canvas.draw(shape, *place, color, second, filling)
    shade = np.where(canvas.rim > 0, _DARK_RIM, np.where(canvas.part > 0, _DARK_PART, 1.0))
    cells = _PALETTE[canvas.color - NUMBERS["red-c"]] * shade[..., None]
    noise = rng.integers(-_NOISE, _NOISE + 1, (2 * side, 2 * side, 3))
    pixels = np.clip(np.rint(cells.repeat(2, axis=0).repeat(2, axis=1)) + noise, 0, 255).astype(np.uint8)
    planes = {
        "color": [canvas.color],
        "object": [canvas.object],
        "part": [canvas.part, canvas.rim],
        "texture": [canvas.texture],
    }
    return Picture(pixels, planes, NUMBERS[f"{scene.name}-s"])


def pattern(texture: str, side: int) -> Grid:
    """Return the cells that a texture has in its second colour: (side, side)."""
    step = max(1, side // 16)
    y, x = np.divmod(np.arange(side * side).reshape(side, side), side)
    rows, columns = y // step % 2 == 0, x // step % 2 == 0
    marked: dict[str, Grid] = {
        "striped": (x + y) // step % 3 == 0,
        "dotted": rows & columns,
        "chequered": rows ^ columns,
        "grid": (y % (2 * step + 1) == 0) | (x % (2 * step + 1) == 0),
    }
    return marked[texture]


def outline(shape: str, y: float, x: float, radius: float, side: int) -> tuple[Grid, Grid]:
    """Return the cells of a shape around (y, x), and those of the part that only it has: (side, side) each."""
    dy, dx = np.arange(side)[:, None] + 0.5 - y, np.arange(side)[None, :] + 0.5 - x
    far, near = np.maximum(abs(dy), abs(dx)), np.minimum(abs(dy), abs(dx))
    distance = np.hypot(dy, dx)
    part: Grid = np.zeros((side, side), dtype=np.bool_)
    if shape == "circle":
        mask, part = distance <= radius, distance <= 0.5 * radius
    elif shape == "square":
        mask, part = far <= 0.85 * radius, near >= 0.4 * radius
    elif shape == "triangle":
        mask, part = (abs(dx) <= (dy + radius) / 1.8) & (dy <= 0.8 * radius), np.tile(dy <= -0.2 * radius, side)
    elif shape == "cross":
        mask, part = (near <= radius / 3) & (far <= radius), far > radius / 3
    else:
        mask = abs(dy) + abs(dx) <= radius
    return mask, part & mask


def _inside(mask: Grid) -> Grid:
    """Return the cells all four neighbours of which are of the shape too."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask


def _either(rng: np.random.Generator, preferred: tuple[T, ...], chance: float, others: tuple[T, ...]) -> T:
    pool = preferred if rng.random() < chance else others
    return pool[rng.integers(len(pool))]


def _place(
    rng: np.random.Generator, side: int, placed: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """Return where a shape has room, (y, x, radius), or None if none was found in a few tries."""
    for _ in range(20):
        radius = side * (0.13 + 0.09 * rng.random())
        y, x = (radius + (side - 2 * radius) * rng.random(2)).tolist()
        if all(max(abs(y - b), abs(x - a)) > radius + r for b, a, r in placed):
            return y, x, radius
    return None
