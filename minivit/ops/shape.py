"""Ops that move numbers without changing them. Each pullback moves the cotangents back to where they came from."""

import numpy as np

from minivit.autograd import op
from minivit.backend import Array, array_module

Size = tuple[int, int]  # height and width


def pair(size: int | Size) -> Size:
    """(size, size) for a number, and a pair as it is.

    >>> pair(16), pair((24, 32))
    ((16, 16), (24, 32))
    """
    return (size, size) if isinstance(size, int) else tuple(size)


@op
def reshape(x, shape):
    """The same numbers in another shape; one entry may be −1.

    >>> reshape(Tensor([1.0, 2.0, 3.0, 4.0]), (2, -1)).shape
    (2, 2)
    """
    old = x.shape
    return x.reshape(shape), lambda dy: dy.reshape(old)


@op
def transpose(x, axes):
    """Axis i of the result is axis ``axes[i]`` of x; the pullback applies the inverse permutation.

    >>> transpose(Tensor([[1.0, 2.0, 3.0]]), (1, 0)).shape
    (3, 1)
    """
    inverse = sorted(range(len(axes)), key=[axis % x.ndim for axis in axes].__getitem__)
    return x.transpose(axes), lambda dy: dy.transpose(inverse)


@op
def broadcast_to(x, shape):
    """x repeated along new or unit axes; the walk back sums the copies' cotangents.

    >>> broadcast_to(Tensor([1.0, 2.0]), (3, 2)).shape
    (3, 2)
    """
    return array_module(x).broadcast_to(x, shape), lambda dy: dy


@op
def patchify(images, patch_size):
    """Cut (B, C, H, W) into patches (P, Q): (B, N, C·P·Q), row by row, each flattened as (channel, row, column).

    N = (H/P) (W/Q). The pullback puts the patches together again.
    Raises ValueError for images without four axes, and where H or W is not a multiple of the patch.

    >>> patchify(Tensor(np.zeros((2, 3, 8, 12), np.float32)), (4, 4)).shape
    (2, 6, 48)
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {images.shape}")
    (b, c, h, w), (p, q) = images.shape, patch_size
    if h % p or w % q:
        raise ValueError(f"patch_size {patch_size} must divide the image size {(h, w)}")
    rows, columns = h // p, w // q
    patches = images.reshape(b, c, rows, p, columns, q).transpose(0, 2, 4, 1, 3, 5)

    def pullback(dy):
        return dy.reshape(b, rows, columns, c, p, q).transpose(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)

    return patches.reshape(b, rows * columns, c * p * q), pullback


@op
def concatenate(*arrays, axis=0):
    """The arrays one after another along ``axis``; the pullback cuts the cotangent at the same places.

    >>> concatenate(Tensor([1.0]), Tensor([2.0, 3.0])).numpy()
    array([1., 2., 3.], dtype=float32)
    """
    xp = array_module(arrays[0])
    ends = [0]
    for array in arrays:
        ends.append(ends[-1] + array.shape[axis])

    def pullback(dy):
        return tuple(xp.split(dy, ends[1:-1], axis=axis))

    return xp.concatenate(arrays, axis=axis), pullback


@op
def shift(x, down, right):
    """The last two axes moved by whole places, over the edge and lost; zeros come in: y[i, j] = x[i − down, j − right].

    What was moved is moved back: the pullback shifts by (−down, −right).

    >>> shift(Tensor([[1.0, 2.0], [3.0, 4.0]]), 0, 1).numpy()
    array([[0., 1.],
           [0., 3.]], dtype=float32)
    """
    return _shifted(x, down, right), lambda dy: _shifted(dy, -down, -right)


def _shifted(x: Array, down: int, right: int) -> Array:
    y = array_module(x).zeros(x.shape, x.dtype)
    (to_rows, rows), (to_columns, columns) = _overlap(down, x.shape[-2]), _overlap(right, x.shape[-1])
    y[..., to_rows, to_columns] = x[..., rows, columns]
    return y


def _overlap(places: int, length: int) -> tuple[slice, slice]:
    """Where an axis and itself, moved by so many places, overlap: as seen by the moved one, and by the other."""
    places = max(-length, min(places, length))
    return slice(max(places, 0), length + places), slice(max(-places, 0), length - places)


@op
def getitem(x, index):
    """x[index] for integers, slices, ``...`` and None: a view; the pullback puts dy into an array of zeros.

    Raises TypeError for arrays as indices, which may repeat: ``take_tokens`` selects tokens.

    >>> getitem(Tensor([1.0, 2.0, 3.0]), slice(1, None)).numpy()
    array([2., 3.], dtype=float32)
    """
    for entry in index if isinstance(index, tuple) else (index,):
        if not (entry is None or entry is ... or isinstance(entry, (int, slice))) or isinstance(entry, bool):
            raise TypeError(f"a Tensor is indexed by integers, slices, ... and None, got {type(entry).__name__}")

    shape = x.shape

    def pullback(dy):
        dx = array_module(dy).zeros(shape, dy.dtype)
        dx[index] = dy
        return dx

    return x[index], pullback


@op
def take_tokens(x, ids):
    """y[b, k] = x[b, ids[b, k]]: for each sample its own selection of tokens.

    x (B, N, D), ids (B, K) integers, different from one another within a row → (B, K, D). As no token is taken
    twice, the pullback may assign where it would otherwise have to add.
    Raises ValueError for ids that repeat, leave 0 … N − 1 or do not fit x.

    >>> take_tokens(Tensor([[[1.0], [2.0], [3.0]]]), np.array([[2, 0]])).numpy().ravel()
    array([3., 1.], dtype=float32)
    """
    shape = x.shape
    rows = _check_ids(ids, *shape[:2])

    def pullback(dy):
        dx = array_module(dy).zeros(shape, dy.dtype)
        dx[rows, ids] = dy
        return dx

    return x[rows, ids], pullback


@op
def put_tokens(x, ids, num_tokens):
    """y[b, ids[b, k]] = x[b, k], zero elsewhere: the transpose of ``take_tokens``.

    x (B, K, D), ids (B, K) integers, different from one another within a row → (B, num_tokens, D).
    Raises ValueError for ids that repeat, leave 0 … num_tokens − 1 or do not fit x.

    >>> put_tokens(Tensor([[[1.0], [2.0]]]), np.array([[2, 0]]), 3).numpy().ravel()
    array([2., 0., 1.], dtype=float32)
    """
    batch, _, width = x.shape
    rows = _check_ids(ids, batch, num_tokens)
    y = array_module(x).zeros((batch, num_tokens, width), x.dtype)
    y[rows, ids] = x
    return y, lambda dy: dy[rows, ids]


def _check_ids(ids: Array, batch: int, tokens: int) -> Array:
    """The column of row numbers (B, 1) that goes with ``ids`` in an index; ids must name distinct tokens.

    On a GPU that is taken on trust: to look at the ids, the host would have to wait for them.
    """
    if ids.ndim != 2 or len(ids) != batch or ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers of shape ({batch}, K), got {ids.dtype} of shape {ids.shape}")
    on_host = isinstance(ids, np.ndarray)
    if on_host and ids.size and (int(ids.min()) < 0 or int(ids.max()) >= tokens):
        raise ValueError(f"ids must lie in 0 … {tokens - 1}, got {int(ids.min())} … {int(ids.max())}")
    rows = array_module(ids).arange(batch)[:, None]
    if on_host and _count_different(rows, ids, tokens) != ids.size:
        raise ValueError("ids must not repeat within a row: the gradient of a token taken twice is not implemented")
    return rows


def _count_different(rows: np.ndarray, ids: np.ndarray, tokens: int) -> int:
    seen = np.zeros((len(ids), tokens), bool)
    seen[rows, ids] = True
    return np.count_nonzero(seen)
