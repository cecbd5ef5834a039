"""Tokens that are not part of the image: the class token, whose output is read by the head, and register tokens."""

from minivit import ops
from minivit.autograd import Tensor


def prepend_tokens(x: Tensor, *tokens: Tensor) -> Tensor:
    """(B, N, D) and tokens (1, T_i, D) → (B, ΣT_i + N, D): the same learned tokens in front of every sample's.

    The class token is Dosovitskiy et al., 2020 (arXiv:2010.11929), eq. 1; registers are Darcet et al., 2023
    (arXiv:2309.16588). A token's gradient is the sum over the batch, because each sample holds a copy.

    >>> prepend_tokens(Tensor(np.ones((2, 3, 4), np.float32)), Tensor(np.zeros((1, 1, 4), np.float32))).shape
    (2, 4, 4)
    """
    batch, _, dim = x.shape
    copies = [ops.broadcast_to(token, (batch, token.shape[1], dim)) for token in tokens]
    return ops.concatenate(*copies, x, axis=1) if copies else x
