"""The perceptron of a block (Dosovitskiy et al., 2020, arXiv:2010.11929, eq. 3), fused: one op, one pullback.

    h = x W₁ᵀ + b₁        (rows, H): four times as wide as x, as a rule
    a = gelu(h)           (rows, H)
    y = a W₂ᵀ + b₂        (rows, O)

Backwards, with the products of ``ops/linear.py`` and the slope of ``ops/activation.py``:

    db₂ = Σ dy,  dW₂ = dyᵀ a,  da = dy W₂
    dh = da ⊙ gelu′(h)
    db₁ = Σ dh,  dW₁ = dhᵀ x,  dx = dh W₁

Kept for the way back: x, a and the slope, as the three ops would. What is gained is the way between them: each row of y
needs its own row of h only, so that whoever computes both can do so for some rows at a time, and the hidden layer need
not travel through memory (``loops/mlp.py``).
"""

from minivit.autograd import op, wanted
from minivit.ops.activation import gelu
from minivit.ops.linear import linear


@op
def mlp(x, weight1, bias1, weight2, bias2):
    """y = gelu(x W₁ᵀ + b₁) W₂ᵀ + b₂ on the last axis, with the exact GELU.

    x (…, I), weight1 (H, I), bias1 (H,), weight2 (O, H), bias2 (O,) → (…, O).
    Raises ValueError where the shapes do not fit.

    >>> ones = Tensor([1.0])
    >>> mlp(Tensor([[0.0], [1.0]]), Tensor([[1.0]]), Tensor([0.0]), Tensor([[2.0]]), ones).numpy().round(4)
    array([[1.    ],
           [2.6827]], dtype=float32)
    """
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    h, _ = linear.raw(x, weight1, bias1)
    a, through_gelu = gelu.raw(h)
    y, _ = linear.raw(a, weight2, bias2)
    x_kept, weight1_kept, a_kept = x if wanted(1) else None, weight1 if wanted(0) else None, a if wanted(3) else None
    before_gelu = wanted(0) or wanted(1) or wanted(2)
    through_gelu, weight2_kept = (through_gelu, weight2) if before_gelu else (None, None)

    def pullback(dy):
        dy, dx, dweight1, dh = dy.reshape(-1, dy.shape[-1]), None, None, None
        if weight2_kept is not None:
            dh = through_gelu(dy @ weight2_kept)
            dx = None if weight1_kept is None else (dh @ weight1_kept).reshape(shape)
            dweight1 = None if x_kept is None else dh.T @ x_kept
        dweight2 = None if a_kept is None else dy.T @ a_kept
        return dx, dweight1, dh, dweight2, dy

    return y.reshape(shape[:-1] + y.shape[-1:]), pullback
