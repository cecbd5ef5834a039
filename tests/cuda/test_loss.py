"""The cross-entropy kernels against the formula in float64."""

import numpy as np
import pytest

from minivit import Tensor, ops
from minivit.backend import FUSED
from minivit.cuda import activation
from minivit.cuda.loss import cross_entropy
from tests.compare import UNIT, errors, exact, numbers

REDUCTIONS = ["mean", "sum", "none"]
SMOOTHING = [0.0, 0.1, 1]


def labels(shape, classes, dtype="int64", seed=5):
    return np.random.default_rng(seed).integers(classes, size=shape).astype(dtype)


def distributions(shape, classes, dtype="float32"):
    """Positive, and not of sum 1."""
    return np.exp(numbers(6, *shape, classes)).astype(dtype)


def agree(found, dtype):
    """The loss is float32; each gradient is rounded once to the type of its array."""
    return found[0] < 16 * UNIT["float32"] and max(found[1:]) < UNIT[dtype.name] + 64 * UNIT["float32"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_labels(xp, dtype, reduction, smoothing):
    for shape, kind in [((7,), "int64"), ((2, 3), "int32"), ((), "uint8")]:
        args = numbers(0, *shape, 10, dtype=dtype, scale=3), labels(shape, 10, kind)
        found = errors(cross_entropy, xp, args, label_smoothing=smoothing, reduction=reduction)
        assert agree(found, dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_distributions_which_may_have_been_computed_too(xp, dtype, reduction, smoothing):
    args = numbers(0, 2, 3, 10, dtype=dtype, scale=3), distributions((2, 3), 10)
    assert agree(errors(cross_entropy, xp, args, label_smoothing=smoothing, reduction=reduction), dtype)


@pytest.mark.parametrize("classes", [1, 33, 1000, pytest.param(21843, marks=pytest.mark.slow)])
def test_any_number_of_classes(xp, classes):
    for target in (labels((3,), classes), distributions((3,), classes)):
        args = numbers(0, 3, classes, scale=3), target
        assert agree(errors(cross_entropy, xp, args, label_smoothing=0.1), np.dtype("float32"))


def test_the_gradient_of_a_constant_target_is_not_computed(xp, monkeypatch):
    monkeypatch.setitem(FUSED, ops.cross_entropy.raw, cross_entropy)
    logits = Tensor(xp.asarray(numbers(0, 3, 5)), requires_grad=True)
    value = ops.cross_entropy(logits, xp.asarray(distributions((3,), 5)))
    assert value.node.pullback(value.data)[1] is None


def test_types_of_loss_and_gradients(xp, dtype):
    value, pullback = cross_entropy(*map(xp.asarray, (numbers(0, 3, 5, dtype=dtype), labels((3,), 5))))
    assert (value.dtype, value.shape) == (np.float32, ())
    dlogits, dlabels = pullback(value)
    assert dlogits.dtype == dtype
    assert dlabels is None


def test_large_logits_do_not_overflow(xp):
    logits = np.array([[1e4, -1e4, 0], [1e38, -1e38, 0]], np.float32)
    args = logits, np.array([0, 0])
    assert max(errors(cross_entropy, xp, args, reduction="none")) == 0


def test_a_label_that_is_no_class_makes_its_row_nan(xp):
    logits, target = numbers(0, 4, 5), np.array([4, 5, -1, 0])
    losses, pullback = cross_entropy(*map(xp.asarray, (logits, target)), reduction="none")
    np.testing.assert_array_equal(np.isnan(exact(losses)), [False, True, True, False])
    dlogits, _ = pullback(xp.asarray(np.ones(4, "f")))
    np.testing.assert_array_equal(np.isnan(exact(dlogits)).all(-1), [False, True, True, False])
    assert np.isnan(exact(cross_entropy(*map(xp.asarray, (logits, target)))[0]))


def test_many_rows_are_added_up_in_a_fixed_order(xp):
    args = numbers(0, 200, 3), labels((200,), 3)
    assert agree(errors(cross_entropy, xp, args), np.dtype("float32"))
    first, second = (cross_entropy(*map(xp.asarray, args))[0] for _ in range(2))
    assert exact(first) == exact(second)


def test_what_the_kernel_does_not_know_is_left_to_the_formula(xp, monkeypatch):
    monkeypatch.setattr(activation, "launch", None)  # would raise
    logits, target = numbers(0, 3, 4), labels((3,), 4)
    for x, t in [(logits.astype("float64"), target), (logits, target.astype("int16"))]:
        value, _ = cross_entropy(xp.asarray(x), xp.asarray(t))
        np.testing.assert_allclose(exact(value), ops.cross_entropy.raw(x, t)[0], rtol=1e-6)
    bad = [({"label_smoothing": 2}, "smoothing must lie in"), ({"reduction": "max"}, "reduction must be")]
    for options, words in bad:
        with pytest.raises(ValueError, match=words):
            cross_entropy(xp.asarray(logits), xp.asarray(target), **options)
    with pytest.raises(ValueError, match="labels must have shape"):
        cross_entropy(xp.asarray(logits), xp.asarray(target[:2]))
    with pytest.raises(TypeError, match="target must be an array"):
        cross_entropy(xp.asarray(logits), [0, 1, 2])
