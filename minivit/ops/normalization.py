"""Layer normalisation (Ba, Kiros and Hinton, 2016, arXiv:1607.06450), and the same without its mean."""

from minivit.autograd import op
from minivit.backend import array_module


@op
def layer_norm(x, weight, bias, eps=1e-6):
    """y = x̂ ⊙ γ + β with x̂ = (x − μ) r, over the last axis of length D; γ is ``weight``, β is ``bias``, both (D,).

    μ = mean(x), r = 1/√(mean((x − μ)²) + eps): the biased variance of each token.

    Backwards: dγ = Σ dy ⊙ x̂ and dβ = Σ dy over the tokens. For dx let g = dy ⊙ γ be the cotangent of x̂. A change
    dx moves x̂ in three ways: directly by r dx, through the mean by −r mean(dx), and through r by
    dr = −r² mean(x̂ ⊙ dx), that is by −r x̂ mean(x̂ ⊙ dx). This linear map is its own transpose, so

        dx = r (g − mean(g) − x̂ mean(g ⊙ x̂)):

    g without its part along the constant vector and (for eps = 0) without its part along x̂. All means are products with
    a vector, at BLAS speed: mean(g) = dy · γ/D and mean(g ⊙ x̂) = (dy ⊙ x̂) · γ/D.
    Raises ValueError where the shapes do not fit.

    >>> layer_norm(Tensor([1.0, 3.0]), Tensor([1.0, 1.0]), Tensor([0.0, 0.0])).numpy().round(3)
    array([-1.,  1.], dtype=float32)
    """
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"layer_norm needs weight and bias of shape {x.shape[-1:]}, got {weight.shape} and {bias.shape}"
        )
    xp = array_module(x)
    shape, width = x.shape, x.shape[-1]
    x = x.reshape(-1, width)
    average = xp.full((width, 1), 1 / width, x.dtype)
    x_hat = x - x @ average
    rstd = 1 / xp.sqrt(xp.square(x_hat) @ average + eps)
    x_hat *= rstd

    def pullback(dy):
        dy = dy.reshape(-1, width)
        dweight = dy * x_hat
        weighted_average = weight[:, None] / width
        dx = dy * weight
        dx -= dy @ weighted_average
        dx -= x_hat * (dweight @ weighted_average)
        dx *= rstd
        return dx.reshape(shape), dweight, dy  # the walk back sums dγ and dβ over the tokens

    return (x_hat * weight + bias).reshape(shape), pullback


@op
def add_layer_norm(x, branch, weight, bias, eps=1e-6):
    """(y, z) with z = x + ``branch``, a residual connection, and y = LN(z), what the next branch starts from.

    x, ``branch``, y and z (…, D), ``weight`` and ``bias`` (D,). Dosovitskiy et al., 2020 (arXiv:2010.11929), eq. 2, 3.

    z has two readers, that branch and the next sum. Backwards their cotangents meet here: x and ``branch`` both get

        dx = dz + r (g − mean(g) − x̂ mean(g ⊙ x̂)),

    the way back through ``layer_norm`` with dz added. As one op, it needs one pass over memory each way, where a sum, a
    norm and the meeting of cotangents need three: which matters on a GPU (``cuda/kernels/layer_norm.cu``).
    Raises ValueError where the shapes do not fit.

    >>> y, z = add_layer_norm(Tensor([1.0, 2.0]), Tensor([0.0, 1.0]), Tensor([1.0, 1.0]), Tensor([0.0, 0.0]))
    >>> y.numpy().round(3), z.numpy()
    (array([-1.,  1.], dtype=float32), array([1., 3.], dtype=float32))
    """
    if x.shape != branch.shape:
        raise ValueError(f"add_layer_norm adds arrays of one shape, got {x.shape} and {branch.shape}")
    z = x + branch
    y, norm_pullback = layer_norm.raw(z, weight, bias, eps)

    def pullback(dy, dz):
        dx, dweight, dbias = norm_pullback(dy)
        dx += dz
        return dx, dx, dweight, dbias

    return (y, z), pullback


@op
def rms_norm(x, weight, eps=1e-6):
    """y = x̂ ⊙ γ with x̂ = x r, r = 1/√(mean(x²) + eps), over the last axis of length D; γ is ``weight`` (D,).

    Zhang and Sennrich, 2019 (arXiv:1910.07467): layer normalisation that does not subtract the mean, and has no bias.
    Backwards it lacks the term of the mean too: dx = r (g − x̂ mean(g ⊙ x̂)) with g = dy ⊙ γ; dγ = Σ dy ⊙ x̂.
    Raises ValueError where the shapes do not fit.

    >>> rms_norm(Tensor([3.0, 4.0]), Tensor([1.0, 1.0])).numpy().round(3)
    array([0.849, 1.131], dtype=float32)
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm needs weight of shape {x.shape[-1:]}, got {weight.shape}")
    xp = array_module(x)
    shape, width = x.shape, x.shape[-1]
    x = x.reshape(-1, width)
    rstd = 1 / xp.sqrt(xp.square(x) @ xp.full((width, 1), 1 / width, x.dtype) + eps)
    x_hat = x * rstd

    def pullback(dy):
        dweight = dy.reshape(-1, width) * x_hat
        dx = dy.reshape(-1, width) * weight
        dx -= x_hat * (dweight @ (weight[:, None] / width))
        dx *= rstd
        return dx.reshape(shape), dweight

    return (x_hat * weight).reshape(shape), pullback
