"""minivit: the Vision Transformer from scratch, in plain NumPy and CuPy.

backend     NumPy or CuPy                   nn          layers
autograd    Tensor, op, backward            models      VisionTransformer, create_model
gradcheck   proves a derivative             optim       SGD, AdamW, schedules
random      keyed random streams            data        data sets, loader, augmentations
ops         values and their pullbacks      training    step, loop, checkpoint
cuda        kernels for an NVIDIA GPU       analysis    looking inside
"""

from minivit import cuda, ops
from minivit.autograd import Parameter, Tensor, detect_anomaly, no_grad, op
from minivit.gradcheck import gradcheck

__version__ = "0.1.0"
__all__ = ["Parameter", "Tensor", "cuda", "detect_anomaly", "gradcheck", "no_grad", "op", "ops"]
