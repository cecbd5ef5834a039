"""Images to patches on a GPU: ``kernels/patchify.cu`` for the formula in ``ops/shape.py``."""

from collections.abc import Sequence
from typing import Any

from minivit import ops
from minivit.backend import Array, array_module
from minivit.cuda.elementwise import THREADS, TYPES, packed
from minivit.cuda.launch import launch
from minivit.cuda.precision import working_type
from minivit.cuda.registry import blocks_for, stands_in_for


@stands_in_for(ops.patchify.raw)
def patchify(images: Array, patch_size: tuple[int, int]) -> tuple:
    """The patches have the type that the precision in force works in: they are what the first product reads."""
    if images.dtype.name not in TYPES or not images.size or not _divides(patch_size, images.shape):
        return ops.patchify.raw(images, patch_size)
    shape, dtype = images.shape, images.dtype

    def pullback(dy):
        dx = array_module(dy).empty(shape, dtype)
        _launch("unpatchify", packed(dy), dx, shape, patch_size, X=dtype, Y=dy.dtype)
        return dx

    return _cut(images, patch_size, working_type(images)), pullback


def patchify_bytes(
    images: Array, patch_size: tuple[int, int], mean: Sequence[float], std: Sequence[float], dtype: Any = "float32"
) -> Array:
    """Bytes to patches of normalised numbers in one pass: (x / 255 − mean) / std in each channel, then ``patchify``.

    images (B, C, H, W) uint8 → (B, N, C·P·Q) in float32 or bfloat16. The float32 numbers are those of
    ``Dataset.normalise``, to the last bit. Raises ValueError where the patches do not divide the images.
    """
    if not _divides(patch_size, images.shape):
        raise ValueError(f"patch_size {patch_size} must divide the image size {images.shape[2:]}")
    scales, shifts = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std)]
    return _cut(images, patch_size, dtype, SCALES=_in_c(scales), SHIFTS=_in_c(shifts))


def _cut(images: Array, patch_size: tuple[int, int], dtype: Any, **constants: Any) -> Array:
    (b, c, h, w), (p, q) = images.shape, patch_size
    patches = array_module(images).empty((b, (h // p) * (w // q), c * p * q), dtype)
    types = {"X": images.dtype, "Y": patches.dtype}
    _launch("patchify", packed(images), patches, images.shape, patch_size, **types, **constants)
    return patches


def _launch(kernel: str, source: Array, target: Array, shape: tuple, patch_size: tuple, **constants: Any) -> None:
    (b, c, h, w), (p, q) = shape, patch_size
    step = 1 if q % 4 else 4
    grid = b, blocks_for(c * h * w, THREADS * step)
    sizes = {"CHANNELS": c, "HEIGHT": h, "WIDTH": w, "PATCH_HEIGHT": p, "PATCH_WIDTH": q, "STEP": step}
    launch("patchify", kernel, grid, THREADS, source, target, **sizes, **constants)


def _divides(patch_size: tuple[int, int], shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and not any(size % part for size, part in zip(shape[2:], patch_size))


def _in_c(numbers: Sequence[float]) -> str:
    """Numbers as C++ reads them, exactly.

    >>> _in_c([0.5, -1.0])
    '0x1.0000000000000p-1,-0x1.0000000000000p+0'
    """
    return ",".join(map(float.hex, numbers))
