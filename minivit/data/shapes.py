"""``shapes``: a generated data set that needs no download. Ten silhouettes, filled with ten textures.

The label is the silhouette. Texture, colours, place, size and turn vary freely, and the texture can be made to
agree with the silhouette, to be independent of it, or to conflict with it. A network trained where both agree
and tested where they conflict shows which of the two it looks at: the question of Geirhos et al., "ImageNet-trained
CNNs are biased towards texture" (ICLR 2019), on images that draw in seconds.

How a picture comes about: every silhouette and every texture is a function of the plane, positive inside and
growing like the distance from its edge. Measured in pixels and clipped to [0, 1], that distance is the share of
the pixel that the figure covers, so edges come out smooth at any image size.
"""

import math
from collections.abc import Callable

import numpy as np

from minivit.data.dataset import Dataset
from minivit.random import key, uniform

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (x, y) → about the distance from the edge, + inside

# ---------------------------------------------------------------------------- silhouettes, in the unit circle


def disc(x: np.ndarray, y: np.ndarray, radius: float = 1.0) -> np.ndarray:
    """A disc around the origin."""
    return radius - np.hypot(x, y)


def polygon(*corners: tuple[float, float]) -> Field:
    """The inside of a polygon: distance from its nearest edge, with the sign of the even-odd rule."""

    def field(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squared = np.full_like(x, np.inf)
        inside = np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            np.minimum(squared, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2, out=squared)
            if ey:  # a ray to the right crosses this edge
                inside ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * (ex / ey))
        return np.where(inside, 1, -1) * np.sqrt(squared)

    return field


def star(points: int, inner: float) -> Field:
    """A star whose inner corners have radius ``inner``; one point shows upwards."""
    angles = [math.pi / 2 + math.pi * k / points for k in range(2 * points)]
    radii = [1.0, inner] * points
    return polygon(*((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles)))


def cross(x: np.ndarray, y: np.ndarray, half_width: float = 0.32) -> np.ndarray:
    """Two crossed bars: the union of two fields is their maximum, the intersection their minimum."""
    x, y = np.abs(x), np.abs(y)
    upright = np.minimum(half_width - x, 0.95 - y)
    return np.maximum(upright, np.minimum(half_width - y, 0.95 - x))


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two discs and a tip."""
    tip = polygon((0, -0.95), (0.92, 0.08), (0, 0.45), (-0.92, 0.08))(x, y)
    return np.maximum(tip, disc(np.abs(x) - 0.47, y - 0.36, 0.53))


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """All that is near enough to a circle."""
    return 0.24 - np.abs(np.hypot(x, y) - 0.74)


def crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc without another disc."""
    return np.minimum(disc(x, y), -disc(x - 0.55, y, 0.8))


SHAPES: dict[str, Field] = {
    "circle": disc,
    "square": polygon((-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)),
    "triangle": polygon((0, 1.0), (-0.95, -0.7), (0.95, -0.7)),
    "star": star(5, 0.45),
    "cross": cross,
    "heart": heart,
    "ring": ring,
    "crescent": crescent,
    "arrow": polygon((0, 1), (0.85, 0.05), (0.32, 0.05), (0.32, -0.95), (-0.32, -0.95), (-0.32, 0.05), (-0.85, 0.05)),
    "bolt": polygon((0.5, 0.98), (-0.15, 0.98), (-0.68, -0.2), (-0.1, -0.2), (-0.3, -1), (0.7, 0.22), (0.12, 0.22)),
}

# ---------------------------------------------------------------------------- textures, of period 1


def waves(x: np.ndarray) -> np.ndarray:
    """Bands of width 1/2. Near an edge a sine is as good as the distance, and it is smooth everywhere."""
    return np.sin(x * (2 * math.pi)) / (2 * math.pi)


def offset(x: np.ndarray) -> np.ndarray:
    """The distance from the nearest half-integer: a triangle wave between 0 and 1/2."""
    return np.abs(x - np.floor(x) - 0.5)


TEXTURES: dict[str, Field] = {
    "plain": lambda x, y: np.full_like(x, -1.0),
    "stripes": lambda x, y: waves(y),
    "bars": lambda x, y: waves(x),
    "diagonals": lambda x, y: waves((x + y) * math.sqrt(0.5)),
    "checks": lambda x, y: np.sin(math.pi * x) * np.sin(math.pi * y) / math.pi,
    "dots": lambda x, y: 0.3 - np.hypot(offset(x), offset(y)),
    "grid": lambda x, y: 0.14 - np.minimum(offset(x), offset(y)),
    "rings": lambda x, y: waves(np.hypot(x, y)),
    "rays": lambda x, y: np.sin(6 * np.arctan2(y, x)) * np.hypot(x, y) / 6,
    "zigzag": lambda x, y: waves(y + offset(x / 1.5) * 1.5) * 0.7,
}

# ---------------------------------------------------------------------------- the data set

RELATIONS = ("agree", "independent", "conflict")


def shapes(n: int, seed: int = 0, size: int = 32, relation: str = "independent", split: str = "train") -> Dataset:
    """``n`` images of ``size`` × ``size`` pixels in RGB; labels number ``SHAPES``, ``extra["texture"]`` ``TEXTURES``.

    ``relation`` ties the texture number to the shape number: ``"agree"`` makes them equal, ``"conflict"`` always
    different, ``"independent"`` draws every texture for every shape alike. Image i depends on (seed, split, i)
    alone, shows shape i mod 10, and looks the same in all three relations up to its texture. ``split`` may be
    any name; different names give different images.

    Raises ValueError for another relation, or where ``n`` or ``size`` is too small.

    >>> data = shapes(20, relation="agree")
    >>> data
    Dataset('shapes', 20 images of 3×32×32, 10 classes)
    >>> bool((data.labels == data.extra["texture"]).all()), data.classes[data.labels[3]]
    (True, 'star')
    """
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {', '.join(RELATIONS)}, got {relation!r}")
    if n < 1 or size < 8:
        raise ValueError(f"n must be at least 1 and size at least 8 pixels, got n = {n} and size = {size}")
    stream = key(seed, "shapes", split)
    images = np.empty((n, 3, size, size), np.uint8)
    texture = np.empty(n, np.int64)
    chunk = max(10, 2**19 // size**2)  # a few MB of coordinates at a time
    for start in range(0, n, chunk):
        part = np.arange(start, min(start + chunk, n))
        images[part], texture[part] = draw(stream, part, size, relation)
    return Dataset("shapes", images, np.arange(n) % len(SHAPES), list(SHAPES), extra={"texture": texture})


def draw(stream: tuple[int, int], samples: np.ndarray, size: int, relation: str) -> tuple[np.ndarray, np.ndarray]:
    """The images (n, 3, size, size) and the texture numbers (n,) of these ``samples`` of a stream."""
    # one number in [0, 1) for all that varies, (n,) each
    kind, right, up, radius, turn, mirror, slant, period, shift, rise, *colour = uniform(stream, samples, (16,)).T

    shape = samples % len(SHAPES)
    texture = {
        "agree": shape,
        "independent": (kind * len(TEXTURES)).astype(np.int64),
        "conflict": (shape + 1 + (kind * (len(TEXTURES) - 1)).astype(np.int64)) % len(TEXTURES),
    }[relation]

    radius = 0.32 + 0.12 * radius  # of the image's side
    period = 0.17 + 0.06 * period
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    room = 0.8 * (1 - 2 * radius)  # for the figure's centre, so that all of it stays in the picture
    x = (pixel - (room * (right - 0.5))[:, None])[:, None, :]  # (n, 1, size), from the figure's centre
    y = (-pixel - (room * (up - 0.5))[:, None])[:, :, None]  # (n, size, 1), upwards

    u, v = turned(x, y, math.radians(20) * (2 * turn - 1), radius)
    u *= np.where(mirror < 0.5, 1, -1).astype(np.float32)[:, None, None]
    s, t = turned(x, y, math.radians(12) * (2 * slant - 1), period)
    s, t = s + (shift - 0.5)[:, None, None], t + (rise - 0.5)[:, None, None]
    figure = coverage(SHAPES, shape, u, v, radius * size)  # (n, 1, size, size)
    pattern = coverage(TEXTURES, texture, s, t, period * size)

    paper, ink, second_ink = palette(*colour)  # (n, 3, 1, 1)
    paper = paper + 0.12 * (x + y)[:, None]  # lighter towards one corner
    image = paper + figure * (ink + pattern * (second_ink - ink) - paper)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), texture


def turned(x: np.ndarray, y: np.ndarray, angle: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame turned by ``angle`` (radians) and measured in ``unit``: (n, size, size) each."""
    cos, sin = (np.cos(angle) / unit)[:, None, None], (np.sin(angle) / unit)[:, None, None]
    return x * cos + y * sin, y * cos - x * sin


def coverage(
    fields: dict[str, Field], which: np.ndarray, x: np.ndarray, y: np.ndarray, pixels: np.ndarray
) -> np.ndarray:
    """The share of each pixel inside field ``which`` of its image, where a unit is ``pixels`` long: (n, 1, H, W)."""
    share = np.empty_like(x)
    for number, field in enumerate(fields.values()):
        at = which == number
        share[at] = np.clip(field(x[at], y[at]) * pixels[at][:, None, None] + 0.5, 0, 1)
    return share[:, None]


def palette(
    dark: np.ndarray, paper_hue: np.ndarray, hue: np.ndarray, contrast: np.ndarray, vivid: np.ndarray, swap: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The colours of paper, ink and second ink, (n, 3, 1, 1) each, from six numbers in [0, 1) an image.

    Pale paper takes a middling and a dark ink, dark paper a middling and a pale one, so that the figure stands
    out from the paper and its texture from the figure, whatever the hues.
    """
    dark = dark < 0.5
    chroma = 0.1 + 0.08 * vivid
    paper = oklch(np.where(dark, 0.24, 0.95), 0.03, paper_hue)
    ink = oklch(np.where(dark, 0.64, 0.68), chroma, hue)
    second = oklch(np.where(dark, 0.92, 0.38), chroma, hue + 0.3 + 0.4 * contrast)
    swap = (swap < 0.5)[:, None, None, None]
    return paper, np.where(swap, second, ink), np.where(swap, ink, second)


def oklch(lightness: np.ndarray, chroma: np.ndarray | float, hue: np.ndarray) -> np.ndarray:
    """Oklab in polar form → sRGB in [0, 1], (n, 3, 1, 1); ``hue`` in turns. Equal lightness looks equally light.

    Björn Ottosson, "A perceptual color space for image processing" (2020), with the constants given there.
    """
    a, b = chroma * np.cos(2 * math.pi * hue), chroma * np.sin(2 * math.pi * hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=1,
    ).clip(0, 1)
    srgb = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return srgb.astype(np.float32)[:, :, None, None]
