"""Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167), of the whole batch, however it is cut."""

from minivit.autograd import op, sum_of_rows, wanted
from minivit.backend import Array, array_module, implementation
from minivit.shared import batch_total, is_cut


@op
def batch_norm(x, weight=None, bias=None, eps=1e-5, report=None):
    """y = x̂ ⊙ γ + β with x̂ = (x − μ) r, each channel by itself; γ is ``weight``, β is ``bias``, both (C,) or None.

    x (B, C) or (B, C, H, W), or with other axes after the channels. Over all axes but these, n values a channel,
    μ = mean(x) and r = 1/√(σ² + eps), where σ² = mean((x − μ)²) is the biased variance. ``report(μ, σ², n)``, arrays
    (C,), (C,) and (1,), is told of them. This is how training goes; in evaluation μ and σ² are constants.

    Backwards it is layer normalisation turned by a right angle (see ``layer_norm`` for the derivation): with g = dy ⊙ γ

        dx = r (g − mean(g) − x̂ mean(g ⊙ x̂)) = r γ (dy − Σdy / n − x̂ Σ(dy ⊙ x̂) / n)

    as γ is constant along the axes of the mean. The two sums are dβ = Σ dy and dγ = Σ dy ⊙ x̂.

    Where the batch is cut into pieces (see ``minivit/shared.py``), n and the sums Σx, Σ(x − μ)², and in dx Σdy and
    Σ(dy ⊙ x̂), are totals over all pieces; dγ and dβ are this piece's share. So every cut gives the same numbers up to
    rounding. The variance is summed after the mean is known: Σx² − n μ² would lose all digits that they share.

    Raises ValueError where the shapes do not fit, and where a channel has a single value, whose x̂ is 0 whatever it is.

    >>> batch_norm(Tensor([[1.0, 10.0], [3.0, 30.0]])).numpy().round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    if x.ndim < 2:
        raise ValueError(f"batch_norm needs x (B, C, …), got {x.shape}")
    if any(p is not None and p.shape != x.shape[1:2] for p in (weight, bias)):
        raise ValueError(
            f"batch_norm needs weight and bias of shape {x.shape[1:2]}, or None, got "
            f"{weight if weight is None else weight.shape} and {bias if bias is None else bias.shape}"
        )
    if x.size <= x.shape[1] and not is_cut():
        raise ValueError(f"batch_norm needs several values a channel, to have a variance: got x {x.shape}")
    xp, total, shape, dtype = array_module(x), batch_total(), x.shape, x.dtype
    real = "float64" if dtype.itemsize == 8 else "float32"  # half precision would lose count
    x = x.reshape(*shape[:2], -1).astype(real, copy=False)  # (B, C, values)
    totals = total(xp.concatenate((_sum_by_channel(x), xp.full(1, len(x) * x.shape[2], real))))
    mean, n = totals[:-1] / totals[-1:], totals[-1:]
    centred = x - mean[:, None]
    var = total(_sum_by_channel(xp.square(centred))) / n
    if report:
        report(mean, var, n)
    rstd = 1 / xp.sqrt(var + eps)
    gain = rstd if weight is None else rstd * weight
    y = centred * gain[:, None]
    if bias is not None:
        y += bias[:, None]
    needs_dx = wanted(0)

    def pullback(dy):
        dy = dy.reshape(centred.shape).astype(real, copy=False)
        dbias = _sum_by_channel(dy)
        dweight = rstd * _sum_by_channel(dy * centred)
        dx = None
        if needs_dx:
            means = total(xp.stack((dbias, dweight))) / n
            dx = centred * (-rstd * means[1])[:, None]
            dx += dy
            dx -= means[0][:, None]
            dx *= gain[:, None]
            dx = dx.reshape(shape)
        return dx, dweight, dbias

    return y.reshape(shape).astype(dtype, copy=False), pullback


def _sum_by_channel(x: Array) -> Array:
    """(B, C, values) → (C,)"""
    rows = x.reshape(len(x), -1)
    return implementation(sum_of_rows, rows)(rows).reshape(x.shape[1], -1).sum(axis=1)
