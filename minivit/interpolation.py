"""Resampling: one axis of an image at another length, as a matrix of weights.

Resampling an axis is a linear map, so it is written as a matrix of (new, old) weights, and an image is resampled by one
product for its columns and one for its rows. Pixel i covers [i, i + 1). Where n new pixels show a stretch of the old
axis that begins at s and is L long, new pixel i has its centre at c = s + (i + ½) L/n (``align_corners=False``). It
takes from old pixel j, at distance t = j + ½ − c, with the weight w(t) of a kernel: a straight line between neighbours,

    w(t) = 1 − |t|                               |t| < 1

or Keys' cubic convolution (1981, doi:10.1109/TASSP.1981.1163711),

    w(t) = (a + 2)|t|³ − (a + 3)|t|² + 1            |t| < 1
           a|t|³ − 5a|t|² + 8a|t| − 4a          1 ≤ |t| < 2

A cubic has four coefficients, and each piece has four conditions: w(0) = 1 and w(1) = w(2) = 0, so that old pixels keep
their values, and the slopes 0 at t = 0 and t = 2 and a at t = 1, so that the curve has no corners. That leaves a: with
a = −½ parabolas are met exactly.

Fewer new pixels than old ones skip some, and what varies faster than the new pixels can show would appear as something
slower. *Antialiasing* widens the kernel by L/n, so that every old pixel has its share. The stretch ends where it ends:
weights are divided by their sum over the old pixels inside of it. Pillow and PyTorch (``antialias=True``) do the same.
"""

from minivit.backend import Array, array_module


def triangle(t: Array) -> Array:
    """The linear kernel w(t) above.

    >>> triangle(np.array([0.0, 0.25, -0.25, 1.5]))
    array([1.  , 0.75, 0.75, 0.  ])
    """
    xp = array_module(t)
    return xp.maximum(1 - xp.abs(t), 0)


def keys_cubic(t: Array, a: float = -0.5) -> Array:
    """The cubic kernel w(t) above.

    >>> keys_cubic(np.array([0.0, 0.5, 1.5, 2.0]))
    array([ 1.    ,  0.5625, -0.0625,  0.    ])
    """
    xp = array_module(t)
    t = xp.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return xp.where(t < 1, near, xp.where(t < 2, far, 0.0))


KERNELS = {"bilinear": triangle, "bicubic": keys_cubic}
REACH = {"bilinear": 1, "bicubic": 2}  # |t| from which on w(t) = 0


def resampling_weights(
    new_pixels: Array, old_pixels: Array, start: Array | float, length: Array | float, new: int, kernel: str
) -> Array:
    """What ``new_pixels`` take from ``old_pixels``, where ``new`` pixels in all show the stretch at ``start``.

    ``kernel`` is "bilinear" or "bicubic". Pixels are numbers of the data type to compute in; all arguments are
    broadcast against one another, old pixels along the last axis, over which the weights sum to 1.

    >>> i, j = np.arange(2.0)[:, None], np.arange(4.0)
    >>> resampling_weights(i, j, start=0, length=4, new=2, kernel="bilinear").round(3)  # half as many pixels
    array([[0.429, 0.429, 0.143, 0.   ],
           [0.   , 0.143, 0.429, 0.429]])
    >>> resampling_weights(i, j, start=1, length=1, new=2, kernel="bilinear")           # pixel 1 alone, twice
    array([[0., 1., 0., 0.],
           [0., 1., 0., 0.]])
    """
    xp = array_module(old_pixels)
    step = length / new
    centre = start + (new_pixels + 0.5) * step
    weights = KERNELS[kernel]((old_pixels + 0.5 - centre) / xp.maximum(step, 1))
    weights *= (old_pixels >= start) & (old_pixels < start + length)
    weights /= weights.sum(-1, keepdims=True)
    return weights
