"""Linear layers and products on a GPU against their formulas, in each precision."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivit import ops
from minivit.autograd import Parameter, Tensor, no_grad
from minivit.backend import FUSED
from minivit.cuda import cublaslt
from minivit.cuda.linear import linear, matmul
from minivit.cuda.precision import PRECISIONS, precision
from tests.compare import UNIT, errors, exact, numbers
from tests.cuda import fake_cublaslt
from tests.cupy_twin import forbid_synchronisation

ROUNDING = {"fp32": 1e-6, "tf32": 2.0**-9, "bf16": UNIT["bfloat16"]}  # of results; TF32 has 10 bits of mantissa


@pytest.fixture
def fake(xp, monkeypatch):
    """The stand-in for cublasLt; None on a GPU. The engine finds what is tested here, also on the twin."""
    for kernel in linear, matmul:
        monkeypatch.setitem(FUSED, kernel.formula, kernel)
    with fake_cublaslt.installed(xp) as fake:
        yield fake


def bf16_numbers(seed: int, *shape: int) -> np.ndarray:
    """In float32, but exact in bfloat16 too: so only results are rounded."""
    return numbers(seed, *shape, dtype="bfloat16").astype(np.float32)


anything = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the library keeps its plans
SIZE = st.integers(1, 9)


@anything
@given(st.lists(SIZE, max_size=3), SIZE, SIZE, st.booleans(), st.sampled_from(PRECISIONS), st.integers(0, 99))
def test_linear_and_its_pullback_agree_with_the_formula(xp, fake, rows, i, o, with_bias, name, seed):
    x, weight, bias = bf16_numbers(seed, *rows, i), bf16_numbers(seed + 1, o, i), bf16_numbers(seed + 2, o)
    with precision(name):
        found = errors(linear, xp, (x, weight, bias) if with_bias else (x, weight))
    assert found[0] < ROUNDING[name]
    assert max(found[1:]) < (ROUNDING["tf32"] if name == "tf32" else 2e-6)  # not rounded to bfloat16


SAME = [((), ()), ((3,), (3,)), ((2, 3), (2, 3))]
BROADCAST = [((2, 3), ()), ((3,), ()), ((), (2, 3)), ((2, 1), (3,)), ((1,), (4,))]


@anything
@given(
    st.sampled_from(SAME + BROADCAST), SIZE, SIZE, SIZE, st.booleans(), st.sampled_from(PRECISIONS), st.integers(0, 99)
)
def test_matmul_and_its_pullback_agree_with_the_formula(xp, fake, leading, m, k, n, turned, name, seed):
    of_x, of_y = leading
    x = bf16_numbers(seed, *of_x, m, k)
    y = bf16_numbers(seed + 1, *of_y, n, k).swapaxes(-1, -2) if turned else bf16_numbers(seed + 1, *of_y, k, n)
    with precision(name):
        found = errors(matmul, xp, (x, y))
    assert found[0] < ROUNDING[name]
    assert max(found[1:]) < (ROUNDING["tf32"] if name == "tf32" else 2e-6)


@pytest.mark.parametrize("x_type", ["float32", "bfloat16"])
def test_types_under_bf16(xp, fake, x_type):
    arrays = numbers(0, 2, 5, 8, dtype=x_type), numbers(1, 6, 8), numbers(2, 6)
    x, weight, bias = map(xp.asarray, arrays)
    with precision("bf16"):
        y, pullback = linear(x, weight, bias)
        z, pull_product = matmul(x, weight.T)
    assert (y.dtype, z.dtype) == ("bfloat16", "bfloat16")
    assert [d.dtype for d in pullback(y)] == [x_type, "float32", "float32"]
    assert [d.dtype for d in pull_product(z)] == [x_type, "float32"]
    dweight = exact(y).reshape(-1, 6).T @ exact(x.astype("bfloat16")).reshape(-1, 8)
    np.testing.assert_allclose(exact(pullback(y)[1]), dweight, rtol=0, atol=1e-5 * np.abs(dweight).max())


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_layer_learns_through_the_engine(xp, fake, name):
    arrays = bf16_numbers(0, 3, 5, 8), bf16_numbers(1, 6, 8), bf16_numbers(2, 6), bf16_numbers(3, 3, 5, 6)
    expected, found = [], []
    for place, dtype, result in ((np.asarray, np.float64, expected), (xp.asarray, np.float32, found)):
        *leaves, g = (place(array.astype(dtype)) for array in arrays)
        x, weight, bias = (Parameter(leaf) for leaf in leaves)
        with precision(name):
            y = ops.linear(x, weight, bias=bias)
        y.backward(g.astype(y.dtype))  # outside: backward uses what forward used
        result += [y.data, x.grad, weight.grad, bias.grad]
    for a, b in zip(found, expected):
        np.testing.assert_allclose(exact(a), b, rtol=0, atol=ROUNDING[name] * np.abs(b).max())
    assert [a.dtype for a in found[1:]] == ["float32"] * 3
    if fake:
        assert fake.computes == [77 if name == "tf32" else 68] * 3


def test_the_way_back_of_matmul_uses_the_precision_of_the_way_there(xp, fake):
    if fake is None:
        pytest.skip("looks at what the library is told")
    x = xp.asarray(numbers(0, 4, 4))
    with precision("tf32"):
        _, pullback = matmul(x, x)
    pullback(x)
    assert fake.computes == [77] * 3


def test_what_is_not_wanted_is_not_computed(xp, fake):
    if fake is None:
        pytest.skip("counts products")
    x, y, dz = xp.asarray(numbers(0, 4, 8)), xp.asarray(numbers(1, 8, 8)), xp.asarray(numbers(2, 4, 8))
    for op in ops.linear, ops.matmul:
        for left, right in ((True, False), (False, True), (True, True)):
            fake.computes.clear()
            op(Tensor(x, left), Tensor(y, right)).backward(dz)
            assert len(fake.computes) == 1 + left + right
    assert linear(x, y)[1](dz)[2] is None
    with no_grad():
        value = ops.linear(Tensor(x), Parameter(y))
    assert value.node is None


def test_nothing_waits_for_the_gpu(xp, fake):
    if fake is None:
        pytest.skip("the twin knows what waits")
    x, weight, bias = (xp.asarray(numbers(seed, *shape)) for seed, shape in enumerate([(2, 5, 8), (6, 8), (6,)]))
    for name in PRECISIONS:
        with precision(name), forbid_synchronisation():
            y, pullback = linear(x, weight, bias)
            pullback(y)
            z, pull_product = matmul(x, x.swapaxes(-1, -2))
            pull_product(z)


@pytest.mark.parametrize("name", PRECISIONS)
def test_other_types_and_empty_arrays_are_left_to_the_formula(xp, fake, name):
    with precision(name):
        for shape, dtype in (((3, 8), "float64"), ((0, 8), "float32")):
            x, weight = xp.asarray(numbers(0, *shape, dtype=dtype)), xp.asarray(numbers(1, 6, 8, dtype=dtype))
            for value, pullback in (linear(x, weight, xp.asarray(numbers(2, 6, dtype=dtype))), matmul(x, weight.T)):
                assert (value.dtype, value.shape) == (dtype, (shape[0], 6))
                assert pullback(value)[0].dtype == dtype
    if fake:
        assert not fake.computes


def test_shapes_that_do_not_fit_are_refused_in_the_words_of_the_formula(xp, fake):
    x, weight, bias = (xp.asarray(numbers(0, *shape)) for shape in ((3, 8), (6, 7), (6,)))
    with pytest.raises(ValueError, match=r"linear needs x \(…, I\) and weight \(O, I\)"):
        linear(x, weight, bias)
    with pytest.raises(ValueError, match="linear needs bias of shape"):
        linear(x[:, :7], weight, bias[:3])
    with pytest.raises(ValueError, match="matmul needs shapes"):
        matmul(x, weight.T)


def test_without_the_library_fp32_falls_back_and_the_others_say_so(xp, monkeypatch):
    monkeypatch.setattr(cublaslt, "library", lambda: None)
    x, weight = numbers(0, 3, 8), numbers(1, 6, 8)
    assert max(errors(linear, xp, (x, weight))) < 1e-6
    assert max(errors(matmul, xp, (x, weight.T))) < 1e-6
    if xp.__name__ != "cupy":  # on a GPU the library may be in use already
        for name in ("tf32", "bf16"):
            with precision(name), pytest.raises(RuntimeError, match="could not be loaded: pip install"):
                linear(xp.asarray(x), xp.asarray(weight))
