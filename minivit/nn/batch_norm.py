"""Batch normalisation layers, with running estimates of mean and variance for evaluation."""

import numpy as np

from minivit import ops
from minivit.autograd import Buffer, Parameter, Tensor, grad_enabled
from minivit.backend import Array
from minivit.nn.module import Module
from minivit.shared import is_first_piece


class BatchNorm(Module):
    """What BatchNorm1d and BatchNorm2d share; see ``ops.batch_norm`` for the formula.

    In training x is normalised by the mean μ and the biased variance σ² of the batch, the whole of it, wherever its
    pieces are computed, and the running estimates follow: m ← (1 − momentum) m + momentum μ, and likewise the variance,
    by the unbiased σ² n / (n − 1), n values a channel. In evaluation the estimates take the place of μ and σ², and each
    image is treated by itself. Inside of ``no_grad`` the estimates stay as they are, so that a layer that is computed
    twice (``checkpoint``) counts once; PyTorch's follow there too.

    Names are PyTorch's: ``weight`` and ``bias`` (C,), None with ``affine=False``; the Buffers ``running_mean`` and
    ``running_var`` (C,) and ``num_batches_tracked`` (), which here is a float32, exact up to 16.7 million steps.

    Raises ValueError for an input of another shape, and in training for a single value a channel.
    """

    whole_batch = True
    ndims: tuple[int, ...]
    shapes: str

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine else None
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))
        self.num_batches_tracked = Buffer(np.zeros((), np.float32))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self.ndims or x.shape[1] != self.num_features:
            raise ValueError(f"{type(self).__name__} needs x {self.shapes} with C = {self.num_features}, got {x.shape}")
        if self.training:
            return ops.batch_norm(x, self.weight, self.bias, self.eps, self.follow)
        gain = (self.running_var + self.eps) ** -0.5
        gain = gain if self.weight is None else gain * self.weight
        shift = -self.running_mean * gain
        shift = shift if self.bias is None else shift + self.bias
        channels = (-1, *[1] * (x.ndim - 2))
        return x * gain.reshape(channels) + shift.reshape(channels)

    def follow(self, mean: Array, var: Array, n: Array) -> None:
        """Move the running estimates towards these of a batch of ``n`` values a channel: once a batch."""
        if not (grad_enabled() and is_first_piece()):
            return
        self.running_mean.data += self.momentum * (mean - self.running_mean.data)
        self.running_var.data += self.momentum * (var * (n / (n - 1)) - self.running_var.data)
        self.num_batches_tracked.data += 1

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}, momentum={self.momentum:g}"


class BatchNorm1d(BatchNorm):
    """Batch normalisation of features (B, C), or of sequences (B, C, L).

    >>> BatchNorm1d(2)(Tensor([[1.0, 10.0], [3.0, 30.0]])).numpy().round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """

    ndims = 2, 3
    shapes = "(B, C) or (B, C, L)"


class BatchNorm2d(BatchNorm):
    """Batch normalisation of feature maps (B, C, H, W).

    >>> layer, x = BatchNorm2d(1), Tensor([[[[1.0, 3.0]]]])
    >>> layer(x).numpy().round(3)
    array([[[[-1.,  1.]]]], dtype=float32)
    >>> layer.running_mean, layer.running_var  # a tenth of the way from 0 to 2, and from 1 to 2
    (Buffer([0.2]), Buffer([1.1]))
    """

    ndims = (4,)
    shapes = "(B, C, H, W)"
