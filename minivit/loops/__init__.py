"""Formulas as loops over numbers, compiled for the CPU: what a fused kernel is on a GPU.

A formula in NumPy makes a pass over memory for every operation, and needs Python's lock to begin and to end it. A loop
reads a number once, does all that the formula does with it, and writes the result once. GELU is 24 passes as a formula.

compiler       from a Python function to machine code; e^x      linear           weights and biases
blas           matrix products inside of loops                  attention        scores that stay in the cache
activation     GELU                                             normalization    layer norm, with the residual before it
optim          AdamW                                            mlp              two linear layers, GELU between them
batch_norm     of a batch that may be cut                       convolution      with kernels of 3 × 3

They need Numba (``pip install 'minivit[fast]'``), and know float32 only; without it, and for all else, the formulas
run. Products are those of the BLAS library that came with NumPy, or of MKL where that is installed and faster.
"""

import importlib.util

from minivit.backend import ENABLED

if ENABLED and importlib.util.find_spec("numba"):
    from minivit.loops import activation, batch_norm, blas, convolution, normalization, optim

    __all__ = ["activation", "batch_norm", "blas", "convolution", "normalization", "optim"]
    if blas.library():
        from minivit.loops import attention, linear, mlp

        __all__ += ["attention", "linear", "mlp"]
