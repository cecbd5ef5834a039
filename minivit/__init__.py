"""minivit: the Vision Transformer from scratch, in plain NumPy and CuPy.

backend     NumPy or CuPy                   nn            layers
autograd    Tensor, op, backward            models        VisionTransformer, MAE, ResNet, create_model
gradcheck   proves a derivative             objective     what a run trains for
random      keyed random streams            distillation  … with a teacher
ops         values and their pullbacks      diversity     … with heads kept apart
optim       SGD, AdamW, LARS, schedules     training      step, loop, checkpoint
data        data sets, loader, augment      analysis      looking inside
cuda        kernels for an NVIDIA GPU       loops         the same for a CPU, with Numba
"""

from minivit import cuda, loops, ops
from minivit.autograd import Parameter, Tensor, detect_anomaly, no_grad, op
from minivit.gradcheck import gradcheck

__version__ = "0.1.0"
__all__ = ["Parameter", "Tensor", "cuda", "detect_anomaly", "gradcheck", "loops", "no_grad", "op", "ops"]
