"""Matrix products: where a Vision Transformer spends nine tenths of its arithmetic.

For Z = X Y, dL = ⟨dZ, dX Y⟩ + ⟨dZ, X dY⟩ = ⟨dZ Yᵀ, dX⟩ + ⟨Xᵀ dZ, dY⟩: the pullback of a product is two products. Each
needs the other factor only. So where one cotangent is not wanted, as for images and frozen weights, its product is not
computed and the other factor is not kept.
"""

from minivit.autograd import op, wanted


@op
def matmul(x, y):
    """z = x @ y on the last two axes, broadcast over the others: dx = dz yᵀ, dy = xᵀ dz.

    x (…, M, K), y (…, K, N) → (…, M, N). Raises ValueError where the shapes do not fit.

    >>> matmul(Tensor([[1.0, 2.0]]), Tensor([[3.0], [4.0]])).numpy()
    array([[11.]], dtype=float32)
    """
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise ValueError(f"matmul needs shapes (…, M, K) and (…, K, N), got {x.shape} and {y.shape}")
    x_kept, y_kept = x if wanted(1) else None, y if wanted(0) else None

    def pullback(dz):
        dx = None if y_kept is None else dz @ y_kept.swapaxes(-1, -2)
        dy = None if x_kept is None else x_kept.swapaxes(-1, -2) @ dz
        return dx, dy

    return x @ y, pullback


@op
def linear(x, weight, bias=None):
    """y = x Wᵀ + b on the last axis, PyTorch's layout.

    x (…, I), weight (O, I), bias (O,) or None → (…, O). With the leading axes flattened to rows,

        dx = dy W        (rows, I)
        dW = dyᵀ x       (O, I)
        db = Σ dy        (O,): b was broadcast over the rows, and the walk back sums over broadcast axes

    Raises ValueError where the shapes do not fit.

    >>> linear(Tensor([1.0, 2.0]), Tensor([[3.0, 4.0]]), Tensor([0.5])).numpy()
    array([11.5], dtype=float32)
    """
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear needs x (…, I) and weight (O, I), got x {x.shape} and weight {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear needs bias of shape {weight.shape[:1]}, got {bias.shape}")
    shape = x.shape
    rows = x.reshape(-1, shape[-1])  # a product of two matrices is one BLAS call, of three axes it is many
    y = rows @ weight.T
    if bias is not None:
        y += bias
    rows_kept, weight_kept = rows if wanted(1) else None, weight if wanted(0) else None

    def pullback(dy):
        dy = dy.reshape(-1, dy.shape[-1])
        dx = None if weight_kept is None else (dy @ weight_kept).reshape(shape)
        dweight = None if rows_kept is None else dy.T @ rows_kept
        return dx, dweight, dy

    return y.reshape(shape[:-1] + y.shape[-1:]), pullback
