"""The NVIDIA GPU: kernels that stand in for the formulas, products through cublasLt, and steps captured as a graph.

registry       which kernel stands in for which formula        kernels/*.cu    the kernels, in CUDA C++
launch         from a .cu file to a running kernel             precision       fp32, TF32, bf16
capture        a step as a CUDA graph
"""

from minivit.cuda import (
    activation,
    attention,
    elementwise,
    linear,
    loss,
    normalization,
    optim,
    patches,
    random,
    reduction,
)
from minivit.cuda.capture import Captured
from minivit.cuda.precision import precision

__all__ = [
    "Captured",
    "activation",
    "attention",
    "elementwise",
    "linear",
    "loss",
    "normalization",
    "optim",
    "patches",
    "precision",
    "random",
    "reduction",
]
