"""minivit: the Vision Transformer from scratch, in plain NumPy and CuPy."""

from minivit import ops
from minivit.autograd import Parameter, Tensor, detect_anomaly, no_grad, op
from minivit.gradcheck import gradcheck

__version__ = "0.1.0"
__all__ = ["Parameter", "Tensor", "detect_anomaly", "gradcheck", "no_grad", "op", "ops"]
