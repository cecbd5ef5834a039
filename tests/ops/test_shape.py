import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.ops import broadcast_to, concatenate, getitem, patchify, put_tokens, reshape, take_tokens, transpose
from tests.rules import cotangent
from tests.strategies import CASES


@pytest.mark.parametrize("name", ["reshape", "transpose", "concatenate", "patchify"])
@given(data=st.data())
def test_moving_numbers_there_and_back(name, data):
    """The pullback of an op that only moves numbers is its inverse: applied to the value, it gives the argument."""
    case = data.draw(CASES[name])
    op = {"reshape": reshape, "transpose": transpose, "concatenate": concatenate, "patchify": patchify}[name]
    value, pullback = op.raw(*case.args, **case.options)
    back = pullback(value)
    for x, again in zip(case.args, back if isinstance(back, tuple) else (back,)):
        np.testing.assert_array_equal(again, x)


@given(CASES["take_tokens"])
def test_put_tokens_is_the_transpose_of_take_tokens(case):
    x, ids = case.args
    taken, take_back = take_tokens.raw(x, ids)
    dy = cotangent(taken)
    np.testing.assert_array_equal(put_tokens.raw(dy, ids, x.shape[1])[0], take_back(dy))
    np.testing.assert_array_equal(take_tokens.raw(put_tokens.raw(dy, ids, x.shape[1])[0], ids)[0], dy)


@given(CASES["getitem"])
def test_getitem_gives_zeros_back_where_nothing_was_taken(case):
    x, index = case.args
    taken, pullback = getitem.raw(x, index)
    dx = pullback(np.ones_like(taken))
    assert dx.sum() == taken.size
    assert set(np.unique(dx)) <= {0.0, 1.0}


@pytest.mark.parametrize("index", [np.array([0, 0]), [0, 1], (0, np.array([1])), True, 1.0, "a"], ids=repr)
def test_getitem_takes_basic_indices_only(index):
    with pytest.raises(TypeError, match=r"indexed by integers, slices, \.\.\. and None, got"):
        Tensor(np.ones((2, 2)))[index]


BAD_IDS = [
    (np.array([[0, 0]]), "must not repeat"),
    (np.array([[0, 3]]), "ids must lie in 0 … 2, got 0 … 3"),
    (np.array([[-1, 0]]), "ids must lie in 0 … 2, got -1 … 0"),
    (np.array([0, 1]), r"integers of shape \(1, K\), got int64 of shape \(2,\)"),
    (np.array([[0.0, 1.0]]), "got float64"),
    (np.array([[0, 1], [0, 1]]), r"got int64 of shape \(2, 2\)"),
]


@pytest.mark.parametrize(("ids", "words"), BAD_IDS)
def test_token_ids_that_do_not_fit(ids, words):
    with pytest.raises(ValueError, match=words):
        take_tokens(Tensor(np.ones((1, 3, 2))), ids)
    with pytest.raises(ValueError, match=words):
        put_tokens(Tensor(np.ones((1, 2, 2))), ids, 3)


def test_shapes_that_do_not_fit():
    x = Tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match="cannot reshape"):
        reshape(x, (4, 2))
    with pytest.raises(ValueError, match="axes don't match"):
        transpose(x, (0, 1, 2))
    with pytest.raises(ValueError, match="could not be broadcast"):
        broadcast_to(x, (3, 3))
    with pytest.raises(ValueError, match="must match exactly"):
        concatenate(x, Tensor(np.ones((2, 4))))
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\), got \(2, 3\)"):
        patchify(x, (1, 1))
