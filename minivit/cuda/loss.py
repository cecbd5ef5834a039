"""The cross entropy on a GPU: ``kernels/cross_entropy.cu`` for the formula in ``ops/loss.py``."""

from minivit import ops
from minivit.autograd import wanted
from minivit.backend import Array, array_module
from minivit.cuda.activation import LONGEST_ROW, launch_rows
from minivit.cuda.elementwise import TYPES
from minivit.cuda.normalization import column_sums
from minivit.cuda.registry import stands_in_for

LABELS = ("int64", "int32", "uint8")


@stands_in_for(ops.cross_entropy.raw)
def cross_entropy(logits: Array, target: Array, label_smoothing: float = 0.0, reduction: str = "mean") -> tuple:
    """The loss is float32, its sum always in the same order. Keeps the logits, the target and a number a row.

    A label outside 0 … K − 1 makes loss and gradient of its row NaN: to raise an error, the host would have to wait.
    """
    if not _fits(logits, target, label_smoothing, reduction):
        return ops.cross_entropy.raw(logits, target, label_smoothing, reduction)
    xp = array_module(logits)
    logits, target = xp.ascontiguousarray(logits), xp.ascontiguousarray(target)
    shape = logits.shape
    rows = logits.size // shape[-1]
    weight = 1 / rows if reduction == "mean" else 1.0
    losses, log_sums = xp.empty(rows, "float32"), xp.empty(rows, "float32")
    smoothing, types = float(label_smoothing), {"X": logits.dtype, "TARGET": target.dtype}
    arrays = logits, target, losses, log_sums
    launch_rows("cross_entropy", "cross_entropy", shape, *arrays, smoothing, weight, **types)
    for_target = wanted(1) and target.dtype.name in TYPES

    def pullback(dy):
        dlogits, dtarget = xp.empty(shape, logits.dtype), xp.empty(shape, "float32") if for_target else None
        arrays = xp.ascontiguousarray(dy), logits, target, log_sums, dlogits, dtarget
        each_its_own = int(reduction == "none")
        launch_rows("cross_entropy", "cross_entropy_backward", shape, *arrays, smoothing, weight, each_its_own, **types)
        return dlogits, dtarget

    if reduction == "none":
        return losses.reshape(shape[:-1]), pullback
    return column_sums(losses.reshape(rows, 1)).reshape(()), pullback


def _fits(logits: Array, target: Array, label_smoothing: float, reduction: str) -> bool:
    """Otherwise the formula computes, or says what is wrong."""
    if logits.dtype.name not in TYPES or not logits.size or logits.shape[-1] > LONGEST_ROW:
        return False
    kind = getattr(target, "dtype", None)
    as_labels = kind in LABELS and target.shape == logits.shape[:-1]
    as_distributions = kind in TYPES and target.shape == logits.shape
    return (as_labels or as_distributions) and 0 <= label_smoothing <= 1 and reduction in ("mean", "sum", "none")
