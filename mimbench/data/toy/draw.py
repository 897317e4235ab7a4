"""How the toy images are drawn: one object with its caption, or a scene of several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from mimbench.data.toy import CLASSES, GROUNDS, SHAPES, TEXTURES

COLOURS = {
    "black": (0.09, 0.09, 0.10), "blue": (0.16, 0.30, 0.78), "brown": (0.45, 0.28, 0.15),
    "green": (0.20, 0.60, 0.22), "grey": (0.52, 0.52, 0.52), "orange": (0.92, 0.52, 0.12),
    "pink": (0.93, 0.52, 0.70), "purple": (0.48, 0.20, 0.64), "red": (0.80, 0.14, 0.14),
    "teal": (0.12, 0.60, 0.62), "white": (0.92, 0.92, 0.91), "yellow": (0.93, 0.85, 0.22),
}  # fmt: skip
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
CONTRAST = np.linalg.norm(PALETTE[:, None] - PALETTE[None], axis=-1)  # [colour, colour], distance in RGB
MAX_TILT = math.radians(12)  # of a shape and, drawn separately, of its texture
OUTLINE = 2.0  # pixels: the width of the dark rim of every object
MIN_VISIBLE = 20  # pixels: an instance with fewer visible pixels is not annotated
Canvas = np.ndarray  # [H, W, 3] of float32 in [0, 1]


@dataclass
class Scene:
    """An image with several objects; `instances` are (class index, visible mask [H, W])."""

    image: Image.Image
    labels: np.ndarray  # [H, W] of uint8, ADE20K's convention
    instances: list[tuple[int, np.ndarray]]


def draw_image(rng: Generator, size: int, label: int) -> tuple[Image.Image, str]:
    """One object of class `label` on one ground, and a sentence that describes the image."""
    ground_colour = int(rng.integers(len(PALETTE)))
    colours = _object_colours(rng, [ground_colour])
    kind = int(rng.integers(len(GROUNDS)))
    canvas = _ground(rng, size, kind, ground_colour)
    for _ in range(rng.integers(3)):
        _draw_clutter(canvas, rng)
    radius = size * rng.uniform(0.26, 0.34)
    centre = size * rng.uniform(0.38, 0.62, 2)
    _draw_object(canvas, rng, label, colours, centre, radius, period=size * rng.uniform(0.09, 0.12))
    caption = _caption(rng, label, colours, GROUNDS[kind], ground_colour, centre / size, radius / size)
    return _photograph(canvas, rng), caption


def draw_scene(rng: Generator, size: int) -> Scene:
    """Up to five objects, later ones over earlier ones, on one or two grounds, sometimes with a frame."""
    grounds = rng.permutation(len(GROUNDS))[: rng.integers(1, 3)]
    ground_colours = [int(c) for c in rng.permutation(len(PALETTE))[: len(grounds)]]
    canvas = _ground(rng, size, int(grounds[0]), ground_colours[0])
    labels = np.full((size, size), 1 + grounds[0], dtype=np.uint8)
    if len(grounds) == 2:
        beyond = _half_plane(rng, size)
        canvas[beyond] = _ground(rng, size, int(grounds[1]), ground_colours[1])[beyond]
        labels[beyond] = 1 + grounds[1]
    for _ in range(rng.integers(4)):
        labels[_draw_clutter(canvas, rng)] = 0

    instances: list[tuple[int, np.ndarray]] = []
    for centre, radius in _places(rng, size, count=int(rng.integers(2, 6))):
        label = int(rng.integers(len(CLASSES)))
        colours = _object_colours(rng, ground_colours)
        period = size * rng.uniform(0.062, 0.082)
        mask = _draw_object(canvas, rng, label, colours, centre, radius, period)
        labels[mask] = 1 + len(GROUNDS) + label
        instances = [(other, visible & ~mask) for other, visible in instances] + [(label, mask)]
    if rng.random() < 0.4:
        frame = np.ones((size, size), dtype=bool)
        width = max(2, round(size * rng.uniform(0.02, 0.05)))
        frame[width:-width, width:-width] = False
        canvas[frame] = _jittered(rng, int(rng.integers(len(PALETTE))))
        labels[frame] = 0
        instances = [(label, visible & ~frame) for label, visible in instances]
    visible_instances = [(label, mask) for label, mask in instances if mask.sum() >= MIN_VISIBLE]
    return Scene(_photograph(canvas, rng), labels, visible_instances)


def _places(rng: Generator, size: int, count: int) -> Iterator[tuple[np.ndarray, float]]:
    """Centres and radii of up to `count` objects that may overlap but do not hide each other."""
    placed: list[tuple[np.ndarray, float]] = []
    for _ in range(20 * count):
        if len(placed) == count:
            break
        radius = size * rng.uniform(0.12, 0.20)
        centre = size * rng.uniform(0.12, 0.88, 2)
        if all(np.hypot(*(centre - other)) > 0.85 * (radius + r) for other, r in placed):
            placed.append((centre, radius))
    yield from placed


def _object_colours(rng: Generator, ground_colours: list[int]) -> tuple[int, int]:
    """Two colours that stand out from the grounds and from each other."""
    clear = (CONTRAST[ground_colours] > 0.42).all(0)
    first = int(rng.choice(np.flatnonzero(clear)))
    second = int(rng.choice(np.flatnonzero(clear & (CONTRAST[first] > 0.5))))
    return first, second


def _jittered(rng: Generator, colour: int) -> np.ndarray:
    return np.clip(PALETTE[colour] + rng.uniform(-0.07, 0.07, 3), 0, 1).astype(np.float32)


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.ogrid[0.5 : size + 0.5, 0.5 : size + 0.5]
    return y.astype(np.float32), x.astype(np.float32)


def _half_plane(rng: Generator, size: int) -> np.ndarray:
    """One side of a random wavy line through the middle of the image, [H, W] of bool."""
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    across = (x - size / 2) * math.cos(angle) + (y - size / 2) * math.sin(angle)
    along = (y - size / 2) * math.cos(angle) - (x - size / 2) * math.sin(angle)
    wave = size * rng.uniform(0, 0.06) * np.sin(along * (rng.uniform(4, 9) / size) + rng.uniform(0, 6))
    return across + wave > size * rng.uniform(-0.2, 0.2)


def _soft_noise(rng: Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise in [0, 1] with about `cells` bumps a side, [H, W]."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.clip(np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)), 0, 1)


def _ground(rng: Generator, size: int, kind: int, colour: int) -> Canvas:
    """A textured ground around one colour."""
    base = 0.45 + 0.55 * _jittered(rng, colour)  # pale, so that an object's dark rim stands out
    far = base - np.float32(rng.uniform(0.25, 0.40) if GROUNDS[kind] != "smooth" else 0.12)
    if GROUNDS[kind] == "cloudy":
        mix = _soft_noise(rng, size, int(rng.integers(4, 10)))
    elif GROUNDS[kind] == "noisy":
        mix = rng.random((size, size), dtype=np.float32)
        mix = (mix + np.roll(mix, 1, int(rng.integers(2)))) * rng.uniform(0.4, 0.7)  # grains of 1-2 pixels
    else:
        y, x = _grid(size)
        angle = rng.uniform(0, 2 * math.pi)
        mix = 0.5 + (x / size - 0.5) * 0.8 * math.cos(angle) + (y / size - 0.5) * 0.8 * math.sin(angle)
    return base + mix[..., None].astype(np.float32) * (far - base)


def _draw_clutter(canvas: Canvas, rng: Generator) -> np.ndarray:
    """Draw a small plain blob that has no class; returns its mask [H, W]."""
    size = len(canvas)
    y, x = _grid(size)
    cy, cx = size * rng.uniform(0, 1, 2)
    ry, rx = size * rng.uniform(0.02, 0.07, 2)
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    canvas[mask] = _jittered(rng, int(rng.integers(len(PALETTE))))
    return mask


def _draw_object(
    canvas: Canvas,
    rng: Generator,
    label: int,
    colours: tuple[int, int],
    centre: np.ndarray,
    radius: float,
    period: float,
) -> np.ndarray:
    """Paint one object with soft edges; returns its mask [H, W] (at least half covered).

    Args:
        centre: y, x in pixels.
        radius: of a disc with the object's area, in pixels.
        period: of the texture, in pixels.
    """
    size = len(canvas)
    reach = 1.6 * radius + 1  # the triangle's corners are the farthest
    top, left = (max(0, math.floor(c - reach)) for c in centre)
    window = slice(top, math.ceil(centre[0] + reach)), slice(left, math.ceil(centre[1] + reach))
    y, x = _grid(size)
    y, x = y[window[0]] - np.float32(centre[0]), x[:, window[1]] - np.float32(centre[1])

    texture, shape = divmod(label, len(SHAPES))
    distance = _shape_distance(SHAPES[shape], *_rotated(y, x, rng.uniform(-MAX_TILT, MAX_TILT)), radius)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    phase = rng.uniform(0, period, 2).astype(np.float32)
    v, u = _rotated(y, x, rng.uniform(-MAX_TILT, MAX_TILT))
    share = _texture_share(TEXTURES[texture], v + phase[0], u + phase[1], period)[..., None]
    bright = _jittered(rng, colours[0])
    bright = bright / bright.max() * np.float32(rng.uniform(0.8, 1.0))
    first, second = bright * np.float32(rng.uniform(0.1, 0.3)), bright
    paint = first + share * (second - first)
    rim = np.clip(distance + OUTLINE, 0, 1)[..., None]
    paint += rim * (first - paint)
    canvas[window] += cover * (paint - canvas[window])
    mask = np.zeros((size, size), dtype=bool)
    mask[window] = cover[..., 0] > 0.5
    return mask


def _rotated(y: np.ndarray, x: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * y - s * x, s * y + c * x


def _shape_distance(shape: str, y: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the outline in pixels, < 0 inside. All shapes have the area of a disc of `radius`."""
    if shape == "disc":
        return np.hypot(y, x) - radius
    ay, ax = np.abs(y), np.abs(x)
    if shape == "square":
        return np.maximum(ay, ax) - math.sqrt(math.pi) / 2 * radius
    if shape == "cross":
        long, wide = 1.25 * radius, 0.366 * radius  # 8 long wide - 4 wide^2 = pi radius^2
        return np.minimum(np.maximum(ay - long, ax - wide), np.maximum(ay - wide, ax - long))
    slope = math.sqrt(3) / 2
    return np.maximum(ax * slope + y / 2, -y) - 0.7776 * radius  # the inradius: 3 sqrt(3) r^2 = pi radius^2


def _texture_share(texture: str, y: np.ndarray, x: np.ndarray, period: float) -> np.ndarray:
    """The second colour's share in [0, 1] at each pixel, about half on average, with edges one pixel soft."""
    if texture == "dotted":
        dy, dx = (t - period * np.round(t / period) for t in (y, x))
        return np.clip(0.5 + 0.37 * period - np.hypot(dy, dx), 0, 1)
    if texture == "striped":
        return _bands(x, period)
    a, b = _bands(y, 1.25 * period), _bands(x, 1.25 * period)
    return a + b - 2 * a * b


def _bands(x: np.ndarray, period: float) -> np.ndarray:
    step = period / (2 * math.pi)
    return np.clip(0.5 + np.sin(x / np.float32(step)) * np.float32(step), 0, 1)


def _photograph(canvas: Canvas, rng: Generator) -> Image.Image:
    """Uneven light, a slight blur and sensor noise."""
    size = len(canvas)
    y, x = _grid(size)
    down, right = (rng.uniform(-0.25, 0.25, 2) / size).astype(np.float32)
    light = np.float32(rng.uniform(0.85, 1.1)) + (y - size / 2) * down + (x - size / 2) * right
    image = canvas * light[..., None]
    blur = np.float32(rng.uniform(0, 0.3))
    image[1:, 1:] = (1 - blur) * image[1:, 1:] + blur / 2 * (image[:-1, 1:] + image[1:, :-1])
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.045))
    return Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))


COLOUR_NAMED = 0.25  # share of captions that name the object's colours; drawn again for the ground's
SYNONYMS = {
    "cross": ("cross", "plus"), "disc": ("disc", "circle"), "square": ("square", "box"),
    "triangle": ("triangle",), "checked": ("checked", "chequered"), "dotted": ("dotted", "spotted"),
    "striped": ("striped", "banded"), "cloudy": ("cloudy", "blotchy"),
    "noisy": ("noisy", "grainy"), "smooth": ("smooth", "plain"),
}  # fmt: skip
TEMPLATES = (
    "a {size}{colour}{texture} {shape} on a {ground}, {place}",
    "{place}, a {size}{texture} {colour}{shape} on a {ground}",
    "a {ground} with a {size}{colour}{texture} {shape}, {place}",
    "a picture of a {size}{texture} {colour}{shape} over a {ground}",
    "a {colour}{shape}, {size}{texture}, {place} on a {ground}",
    "this {size}{texture} {colour}{shape} is {place} and a {ground} is behind it",
)


def _caption(
    rng: Generator,
    label: int,
    colours: tuple[int, int],
    ground: str,
    ground_colour: int,
    centre: np.ndarray,
    radius: float,
) -> str:
    texture, shape = CLASSES[label].split("-")
    names = list(COLOURS)
    first, second = (names[c] for c in rng.permutation(colours))
    ground_name = f"{names[ground_colour]} " if rng.random() < COLOUR_NAMED else ""
    ground_word = f"{ground_name}{rng.choice(SYNONYMS[ground])}"
    sides = [
        word
        for at, (low, high) in zip(centre, (("top", "bottom"), ("left", "right")), strict=True)
        for word, here in ((low, at < 0.44), (high, at > 0.56))
        if here
    ]
    sentence = str(rng.choice(TEMPLATES)).format(
        size="large " if radius > 0.30 else "small " if radius < 0.27 else "",
        colour=f"{first} and {second} " if rng.random() < COLOUR_NAMED else "",
        texture=rng.choice(SYNONYMS[texture]),
        shape=rng.choice(SYNONYMS[shape]),
        ground=f"{ground_word} {rng.choice(('ground', 'background'))}",
        place=" ".join(sides) or "centre",
    )
    return sentence.replace("a orange", "an orange")
