"""Numbers that the pieces of a batch have in common.

A batch may go through the network in pieces, side by side, each knowing only its own images. Almost every layer treats
each image by itself, and does not notice. BatchNorm does: its mean and variance are those of the whole batch. So it
asks here for sums over all pieces,

    piece 0   Σx ─╮         ╭─▶ Σx of the batch
    piece 1   Σx ─┼── sum ──┼─▶ Σx of the batch
    piece 2   Σx ─╯         ╰─▶ Σx of the batch

on its way forward, and on its way back, in the same order in every piece. Who makes the sum, and where the pieces are,
in threads or on other machines, is said by who cuts the batch: see ``training/layout.py``.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minivit.backend import Array


def _itself(array: Array) -> Array:
    return array


class _State(threading.local):
    total: Callable[[Array], Array] = staticmethod(_itself)
    first = True


_state = _State()


@contextmanager
def sharing(total: Callable[[Array], Array], first: bool) -> Iterator[None]:
    """Inside: this thread computes one of several pieces, and ``total(array)`` is the sum of all pieces' arrays.

    ``first``: of all pieces that keep state in this model's memory one is the first, and the others leave it alone.

    >>> with sharing(lambda array: 2 * array, first=True):  # as if the other piece were equal
    ...     batch_total()(np.ones(3))
    array([2., 2., 2.])
    """
    outer = _state.total, _state.first
    _state.total, _state.first = total, first
    try:
        yield
    finally:
        _state.total, _state.first = outer


def batch_total() -> Callable[[Array], Array]:
    """The function that sums an array over the pieces of this thread's batch. Its argument is not written to.

    >>> batch_total()(np.ones(3))  # the batch is in one piece
    array([1., 1., 1.])
    """
    return _state.total


def is_cut() -> bool:
    """Is this thread's batch in several pieces, so that there are others to ask?

    >>> is_cut()
    False
    """
    return _state.total is not _itself


def is_first_piece() -> bool:
    """Is this the piece whose layers write down what the whole batch has in common?

    >>> is_first_piece()
    True
    """
    return _state.first
