"""A checker that accepts everything is worse than none: here it meets derivatives that are wrong, and must refuse."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Parameter, Tensor, gradcheck, op, ops
from minivit.autograd import recording
from minivit.gradcheck import GradcheckError
from tests.rules import one_result, pull_back, value_and_gradients
from tests.strategies import CASES

X = np.random.default_rng(0).standard_normal((3, 4))


def wrong_softmax(x):
    y, pullback = ops.softmax.raw(x)
    return y, lambda dy: 123 * pullback(dy)


def softmax_without_the_sum(x):
    y, _ = ops.softmax.raw(x)
    return y, lambda dy: dy * y


def wrong_layer_norm(x):
    y, pullback = ops.layer_norm.raw(x, np.ones(4), np.zeros(4))
    return y, lambda dy: -pullback(dy)[0]


WRONG = {
    "the sign": lambda x: (x * x, lambda dy: -2 * x * dy),
    "a factor": lambda x: (x * x, lambda dy: x * dy),
    "a factor, by little": lambda x: (x * x, lambda dy: 2.00001 * x * dy),
    "a missing term": lambda x: (x * np.exp(x), lambda dy: dy * np.exp(x)),
    "no gradient at all": lambda x: (x * x, lambda dy: 0 * dy),
    "not a number": lambda x: (x * x, lambda dy: np.nan * dy),
    "a transpose": lambda x: (x @ np.diag([1.0, 2, 3, 4]), lambda dy: dy @ np.diag([4.0, 3, 2, 1])),
    "a multiple of softmax": wrong_softmax,
    "softmax without the sum": softmax_without_the_sum,
    "minus layer norm": wrong_layer_norm,
    "a stray constant": lambda x: (x * x, lambda dy: 2 * x * dy + 1),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_derivatives_are_refused(mistake):
    with pytest.raises(GradcheckError, match=r"gradient of argument 0, shape \(3, 4\), is wrong"):
        gradcheck(op(WRONG[mistake]), X)


@pytest.mark.parametrize("mistake", ["a multiple of softmax", "minus layer norm"])
def test_a_cotangent_of_ones_would_not_see_these(mistake):
    """Why the checker draws random cotangents: the true gradients of sum(softmax(x)) and sum(layer_norm(x)) are 0."""
    x = Tensor(X, requires_grad=True)
    op(WRONG[mistake])(x).sum().backward()
    np.testing.assert_allclose(x.grad, 0, atol=1e-12)


@pytest.mark.parametrize("name", ops.__all__)
@settings(max_examples=15)
@given(data=st.data())
def test_twice_the_gradient_is_refused_for_every_op(name, data):
    case, right = data.draw(CASES[name]), one_result(getattr(ops, name))

    def doubled(*args, **options):
        y, pullback = right.raw(*args, **options)
        return y, lambda dy: tuple(None if dx is None else 2 * dx for dx in pull_back(pullback, dy))

    value, *gradients = value_and_gradients(right, case)
    if max(map(np.linalg.norm, gradients)) > 1e-2 * np.linalg.norm(value):  # of 1-element rows softmax has no gradient
        with pytest.raises(GradcheckError):
            gradcheck(lambda *args: op(doubled)(*args, **case.options), *case.args)


def test_the_message_names_argument_element_expected_and_given_number():
    factors = np.full(1000, 2.0)
    factors[637] = 2.5
    wrong = op(lambda x, y: (2 * x + 3 * y, lambda dz: (2 * dz, dz * (factors + 1))))
    with pytest.raises(GradcheckError) as caught:
        gradcheck(lambda x, y: wrong(x, y), np.ones(1000), np.ones(1000))
    message = str(caught.value)
    assert "gradient of argument 1, shape (1000,), is wrong" in message
    assert "worst at element [637]: expected" in message
    expected, got = (float(message.rpartition(word)[2].split(",")[0]) for word in ("expected ", "got "))
    assert got / expected == pytest.approx(3.5 / 3)


def test_elements_are_named_by_their_index():
    slope = np.ones((2, 3))
    slope[1, 2] = 0
    with pytest.raises(GradcheckError, match=r"worst at element \[1, 2\]: expected .*, got -?0$"):
        gradcheck(op(lambda x: (x + 0, lambda dy: dy * slope)), np.ones((2, 3)))


def test_writing_to_an_argument_is_refused():
    def forward(x):
        x += 1
        return x * 1, lambda dy: dy

    def backward(x):
        def pullback(dy):
            x[...] = 0
            return dy

        return x * 1, pullback

    for function in (forward, backward):
        with pytest.raises(GradcheckError, match="argument 0 was written to"):
            gradcheck(op(function), X.copy())


def test_writing_to_a_parameter_is_refused():
    parameter = Parameter(X.copy())

    @op
    def decays(p):
        value = p * 1
        p *= 0.9
        return value, lambda dy: dy

    with pytest.raises(GradcheckError, match="w was written to"):
        gradcheck(lambda: decays(parameter), parameters={"w": parameter})


@pytest.mark.parametrize("change", [lambda dy: np.multiply(dy, 2, out=dy), lambda dy: np.abs(dy, out=dy)])
def test_writing_to_the_cotangent_is_refused(change):
    """Once or each time anew: after abs, a second abs changes nothing."""
    with pytest.raises(GradcheckError, match="a pullback wrote to the cotangent"):
        gradcheck(op(lambda x: (x + 0, change)), X)


def test_a_pullback_that_gives_another_answer_is_refused():
    calls = itertools.count()
    with pytest.raises(GradcheckError, match="another answer when it is called again"):
        gradcheck(op(lambda x: (x + 0, lambda dy: dy * next(calls))), X)


def test_a_random_function_is_refused():
    calls = itertools.count()
    with pytest.raises(GradcheckError, match="value of the function differs between two runs"):
        gradcheck(op(lambda x: (x + next(calls), lambda dy: dy)), X)


def test_a_value_that_differs_under_no_grad_is_refused():
    with pytest.raises(GradcheckError, match=r"differs between two runs, or under no_grad"):
        gradcheck(op(lambda x: (x + recording(), lambda dy: dy)), X)


def test_a_gradient_that_differs_between_runs_is_refused():
    runs = itertools.count()

    def function(x):
        factor = next(runs)
        return x + 0, lambda dy: dy * factor

    with pytest.raises(GradcheckError, match="gradient of argument 0 differs between two runs"):
        gradcheck(op(function), X)


def test_an_argument_without_gradient_is_refused():
    with pytest.raises(GradcheckError, match="argument 1 received no gradient"):
        gradcheck(lambda x, y: x * 1.0, X, X)
    with pytest.raises(GradcheckError, match="does not depend on any of the arguments"):
        gradcheck(lambda x: Tensor(X), X)


def test_float32_is_refused():
    with pytest.raises(TypeError, match="needs float64, but argument 1 is float32"):
        gradcheck(ops.add, X, X.astype(np.float32))
    with pytest.raises(TypeError, match=r"needs float64, but w is float32"):
        gradcheck(lambda: ops.neg(p), parameters={"w": (p := Parameter([1.0]))})


def test_nothing_to_differentiate():
    with pytest.raises(TypeError, match="nothing to differentiate"):
        gradcheck(lambda labels: labels, np.array([1, 2]))


def test_right_functions_pass_in_every_form():
    """Arrays, Tensors, numbers without axes; labels and options are handed on; methods of Tensor work in ``f``."""
    labels, scalar = np.array([0, 3, 1]), np.array(0.7)
    assert gradcheck(ops.cross_entropy, X, labels) < 1e-7
    assert gradcheck(ops.softmax, Tensor(X), 0) < 1e-7
    assert gradcheck(lambda x, t: (x * t - x.mean(0)).exp().sum(), X, scalar) < 1e-7
    assert gradcheck(lambda t: (t * t) ** 0.5, scalar) < 1e-7


def test_parameters_are_checked_and_left_as_they_were():
    weight, frozen = Parameter(X.copy()), Parameter(X.copy())
    weight.grad = np.ones_like(X)
    error = gradcheck(lambda x: x @ weight.T * frozen.sum(), X, parameters={"w": weight, "f": frozen})
    assert error < 1e-7
    for parameter in (weight, frozen):
        np.testing.assert_array_equal(parameter.data, X)
        assert parameter.grad is None
    wrong = op(lambda x, w: (x * w, lambda dy: (dy * w, -dy * x)))
    with pytest.raises(GradcheckError, match=r"gradient of layer\.weight, shape \(3, 4\), is wrong"):
        gradcheck(lambda x: wrong(x, weight), X, parameters={"layer.weight": weight})


def test_a_mistake_in_one_of_a_thousand_elements_is_found():
    for element in (0, 123, 999):
        slope = np.ones(1000)
        slope[element] += 0.01
        with pytest.raises(GradcheckError):
            gradcheck(op(lambda x, slope=slope: (x + 0, lambda dy: dy * slope)), np.ones(1000))
