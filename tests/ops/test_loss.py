import numpy as np
import pytest
from hypothesis import given

from minivit import Tensor
from minivit.ops import cross_entropy, mse_loss
from tests.strategies import CASES, Case, generators

LOGITS = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])


@given(CASES["cross_entropy"])
def test_labels_are_one_hot_distributions(case):
    logits, target = case.args
    if target.dtype.kind == "f":
        return
    one_hot = np.eye(logits.shape[-1])[target]
    np.testing.assert_allclose(
        cross_entropy.raw(*case.args, **case.options)[0],
        cross_entropy.raw(logits, one_hot, **case.options)[0],
        rtol=1e-13,
    )


@given(CASES["cross_entropy"])
def test_smoothing_mixes_with_the_uniform_distribution(case):
    logits, s, classes = case.args[0], case.options["label_smoothing"], case.args[0].shape[-1]
    targets = case.args[1], np.full(logits.shape, 1 / classes)
    ends = [cross_entropy.raw(logits, target, reduction="none")[0] for target in targets]
    mixed = cross_entropy.raw(*case.args, label_smoothing=s, reduction="none")[0]
    np.testing.assert_allclose(mixed, (1 - s) * ends[0] + s * ends[1], rtol=1e-11, atol=1e-13)


@given(CASES["cross_entropy"])
def test_the_gradient_of_labels_sums_to_zero_over_the_classes(case):
    """A shift of all logits changes nothing."""
    logits, target = case.args
    if target.dtype.kind == "f":
        target = target / target.sum(-1, keepdims=True)
    _, pullback = cross_entropy.raw(logits, target, **case.options | {"reduction": "sum"})
    np.testing.assert_allclose(pullback(np.ones(()))[0].sum(-1), 0, atol=1e-13)


@pytest.mark.parametrize("loss", [cross_entropy, mse_loss])
@given(generators)
def test_reductions(loss, rng):
    x, target = rng.standard_normal((3, 4)), rng.uniform(size=(3, 4))
    losses, total, average = (loss.raw(x, target, reduction=r)[0] for r in ("none", "sum", "mean"))
    assert losses.shape == ((3,) if loss is cross_entropy else (3, 4))
    np.testing.assert_allclose([total, average], [losses.sum(), losses.sum() / losses.size], rtol=1e-13)


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes():
    assert cross_entropy(Tensor(np.zeros((4, 10))), np.arange(4)).item() == pytest.approx(np.log(10))


def test_large_logits_do_not_overflow():
    x = Tensor([[1e4, -1e4]], requires_grad=True)
    loss = cross_entropy(x, np.array([1]))
    loss.backward()
    assert loss.item() == 2e4
    np.testing.assert_array_equal(x.grad, [[1, -1]])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case((LOGITS, np.array([0, 3]))), r"labels must lie in 0 … 2 for logits of 3 classes, got 0 … 3"),
        (Case((LOGITS, np.array([-1, 2]))), r"got -1 … 2"),
        (Case((LOGITS, np.array([0]))), r"labels must have shape \(2,\) for logits \(2, 3\), got \(1,\)"),
        (Case((LOGITS, np.ones((2, 2)))), r"probabilities must have the logits' shape \(2, 3\), got \(2, 2\)"),
        (Case((LOGITS, np.array([0, 1])), {"label_smoothing": 1.5}), r"label_smoothing must lie in \[0, 1\], got 1.5"),
        (Case((LOGITS, np.array([0, 1])), {"label_smoothing": -0.1}), r"got -0.1"),
        (Case((LOGITS, np.array([0, 1])), {"reduction": "max"}), r"must be 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_cross_entropy_names_what_is_wrong(case, words):
    with pytest.raises(ValueError, match=words):
        cross_entropy(Tensor(case.args[0]), case.args[1], **case.options)


def test_cross_entropy_takes_arrays_only():
    with pytest.raises(TypeError, match="array of labels or of probabilities, got list"):
        cross_entropy(Tensor(LOGITS), [0, 1])


def test_mse_loss_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"x and target of one shape, got \(2, 3\) and \(2,\)"):
        mse_loss(Tensor(LOGITS), np.ones(2))
    with pytest.raises(ValueError, match=r"reduction must be 'mean', 'sum' or 'none', got None"):
        mse_loss(Tensor(LOGITS), LOGITS, reduction=None)


def test_no_gradient_is_computed_for_labels():
    _, pullback = cross_entropy.raw(LOGITS, np.array([0, 1]))
    assert pullback(np.ones(()))[1] is None
