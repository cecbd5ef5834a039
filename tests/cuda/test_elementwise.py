"""Sums, products and changes of type: arithmetic of one operation, so the results are the formula's, rounded once."""

import numpy as np
import pytest

from minivit import Parameter, Tensor, ops
from minivit.backend import FUSED, array_module
from minivit.cuda import elementwise
from minivit.cuda.elementwise import add, cast, packed, scale
from tests.compare import UNIT, errors, exact, numbers

SHAPES = [(1,), (3,), (5, 1031), (2, 3, 64), (4, 4096)]
KINDS = ["float32", "bfloat16"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cast_rounds_to_the_nearest_and_back_exactly(xp, shape):
    x = numbers(0, *shape)
    x.flat[:1] = np.nan
    half = cast(xp.asarray(x), np.dtype("bfloat16"))
    assert half.dtype == "bfloat16"
    np.testing.assert_array_equal(exact(half), x.astype("bfloat16").astype(float))
    back = cast(half, "float32")
    assert back.dtype == "float32"
    np.testing.assert_array_equal(exact(back), exact(half))


def test_cast_leaves_what_has_the_type_and_knows_other_types(xp):
    x = xp.asarray(numbers(0, 6))
    assert cast(x, "float32") is x
    assert cast(x, "float64").dtype == "float64"
    assert cast(x.astype("float64"), "float32").dtype == "float32"
    assert cast(x[:0], np.dtype("bfloat16")).shape == (0,)


def test_the_middle_between_two_numbers_goes_to_the_even_one(xp):
    x = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 3.4e38, -np.inf, 1e-40], np.float32)
    found = cast(xp.asarray(x), np.dtype("bfloat16"))
    np.testing.assert_array_equal(exact(found), x.astype("bfloat16").astype(float))
    assert exact(found)[:2].tolist() == [1, 1 + 2.0**-6]


@pytest.mark.parametrize("y_dtype", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_residual_connections(xp, dtype, y_dtype, shape):
    args = numbers(0, *shape, dtype=dtype), numbers(1, *shape, dtype=y_dtype)
    value, dx, dy = errors(add, xp, args)
    kind = "float32" if "float32" in (dtype, y_dtype) else "bfloat16"
    z, pullback = add(*map(xp.asarray, args))
    assert z.dtype == kind
    assert [x.dtype for x in pullback(z)] == [dtype, y_dtype]
    assert value < UNIT[kind]
    assert dx <= (dtype != kind) * UNIT["bfloat16"]
    assert dy <= (y_dtype != kind) * UNIT["bfloat16"]


@pytest.mark.parametrize("y_shape", [(1, 5, 12), (5, 12), (12,), (1, 1, 12)], ids=str)
def test_a_table_is_added_to_each_sample(xp, dtype, y_shape):
    args = numbers(0, 7, 5, 12, dtype=dtype), numbers(1, *y_shape)
    x, y = map(xp.asarray, args)
    z, pullback = add(x, y)
    np.testing.assert_array_equal(exact(z), exact(args[0]).astype("f") + args[1])
    dy = numbers(2, *z.shape)
    _, dtable = pullback(xp.asarray(dy))
    axes = tuple(range(3 - len(y_shape))) + tuple(3 - len(y_shape) + i for i, n in enumerate(y_shape) if n == 1)
    np.testing.assert_allclose(exact(dtable), exact(dy).sum(axes).reshape(y_shape), rtol=0, atol=1e-5)


def test_a_table_that_is_not_trained_costs_nothing(xp, monkeypatch):
    monkeypatch.setitem(FUSED, ops.add.raw, add)
    z = Parameter(xp.asarray(numbers(0, 2, 3, 4))) + Tensor(xp.asarray(numbers(1, 1, 3, 4)))
    assert z.node.pullback(z.data)[1] is None


OF_SAMPLES = [((6, 5, 12), (6, 1, 1)), ((6, 5, 12), (6, 5, 1)), ((1, 2, 2), (1, 1, 1)), ((4, 4096), (1, 1))]
OF_ELEMENTS = [((3, 5), (3, 5)), ((2, 3, 4), (2, 3, 4))]


@pytest.mark.parametrize("shape, factor_shape", OF_SAMPLES + OF_ELEMENTS, ids=str)
def test_masks(xp, dtype, shape, factor_shape):
    """Of each element and of each sample; half of the factors are zero."""
    factor = (numbers(1, *factor_shape) > 0).astype(dtype) / np.array(0.7, dtype)
    args = numbers(0, *shape, dtype=dtype), factor.astype(dtype)
    stand_in = with_constant(scale, args[1])
    value, dx = errors(stand_in, xp, args[:1])
    assert stand_in(xp.asarray(args[0]))[0].dtype == dtype
    assert max(value, dx) <= UNIT[dtype.name]


@pytest.mark.parametrize("factor", [-0.3, 2, 0.0])
def test_numbers_as_factors(xp, dtype, factor):
    stand_in = with_constant(scale, factor)
    assert max(errors(stand_in, xp, (numbers(0, 5, 31, dtype=dtype),))) <= UNIT[dtype.name] + 2.0**-24


def test_what_is_dropped_is_gone(xp):
    """Not 0 · ∞."""
    x = np.array([[np.inf] * 4, [1] * 4], np.float32)
    value, _ = scale(xp.asarray(x), xp.asarray(np.array([[0], [1]], np.float32)))
    np.testing.assert_array_equal(exact(value), [[0] * 4, [1] * 4])


def test_arrays_that_are_not_packed_are_copied(xp):
    x = xp.asarray(numbers(0, 4, 9))
    for part in (x[1], x.T, x[:, ::2]):
        whole = packed(part)
        assert whole.flags.c_contiguous
        assert whole.data.ptr % 16 == 0
        np.testing.assert_array_equal(exact(whole), exact(part))
    np.testing.assert_array_equal(exact(add(x.T, x.T)[0]), 2 * exact(x).T)


UNKNOWN = [((2, 3), (2, 3)), ((2, 4), (2, 1)), ((2, 6), (6,)), ((0, 4), (0, 4)), ((4,), (2, 4))]  # the first: float64


@pytest.mark.parametrize("x, y", UNKNOWN, ids=str)
def test_what_the_kernels_do_not_know_is_left_to_the_formulas(xp, x, y, monkeypatch):
    monkeypatch.setattr(elementwise, "launch", None)  # would raise
    dtype = "float64" if x == (2, 3) else "float32"
    x, y = numbers(0, *x, dtype=dtype), numbers(1, *y, dtype=dtype)
    np.testing.assert_array_equal(exact(add(xp.asarray(x), xp.asarray(y))[0]), exact(x + y))
    np.testing.assert_array_equal(exact(scale(xp.asarray(x), xp.asarray(y.astype("float64")))[0]), x * exact(y))


def test_a_number_may_come_first():
    """The engine looks at the first argument: a number lies on no device."""
    np.testing.assert_array_equal(add(2.0, np.ones(4, "f"))[0], np.full(4, 3))


def with_constant(stand_in, constant):
    """The stand-in of one argument, with its formula likewise."""

    def of_one(x):
        return stand_in(x, array_module(x).asarray(constant) if hasattr(constant, "dtype") else constant)

    of_one.formula = lambda x: stand_in.formula(x, exact(constant))
    return of_one
