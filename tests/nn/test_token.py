import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor, gradcheck
from minivit.nn import prepend_tokens
from tests.strategies import arrays, sizes


@st.composite
def tokens(draw):
    """Tokens of images (B, N, D), and some groups of learned ones (1, T, D) to put in front."""
    b, n, d = draw(st.tuples(sizes, sizes, sizes))
    groups = draw(st.lists(sizes, max_size=3))
    return draw(arrays((b, n, d))), [draw(arrays((1, count, d))) for count in groups]


@given(tokens())
def test_every_sample_gets_the_same_tokens_in_front_in_the_order_given(drawn):
    x, groups = drawn
    y = prepend_tokens(Tensor(x), *map(Tensor, groups)).data
    for sample, tokens in zip(x, y):
        np.testing.assert_array_equal(tokens, np.concatenate([group[0] for group in groups] + [sample]))


@given(tokens())
def test_gradients(drawn):
    x, groups = drawn
    gradcheck(lambda x, *groups: prepend_tokens(x + 0, *groups), x, *groups)


def test_a_tokens_gradient_is_the_sum_over_the_batch():
    token = Tensor(np.zeros((1, 1, 2)), requires_grad=True)
    dy = np.arange(12.0).reshape(3, 2, 2)
    prepend_tokens(Tensor(np.zeros((3, 1, 2))), token).backward(dy)
    np.testing.assert_array_equal(token.grad, dy[:, :1].sum(0, keepdims=True))
