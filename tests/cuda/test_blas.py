"""Products through cublasLt: on the CuPy twin with a stand-in for the library, and on a GPU with the library itself."""

import ctypes

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivit.cuda import blas, cublaslt
from minivit.cuda.blas import layout, matmul, tuned
from minivit.cuda.precision import precision
from tests.compare import UNIT, exact, numbers, relative
from tests.cuda import fake_cublaslt
from tests.cupy_twin import twin


@pytest.fixture
def fake(xp):
    """The stand-in for the library; None on a GPU."""
    with fake_cublaslt.installed(xp) as fake:
        yield fake


PLACEMENTS = ("rows", "columns", "part", "part of columns", "every second")


def placed(xp, array: np.ndarray, placement: str):
    """The same numbers on the device, in one of several places in memory."""
    turned = np.swapaxes(array, -1, -2)
    if placement == "rows":
        return xp.asarray(array)
    if placement == "columns":
        return xp.asarray(np.ascontiguousarray(turned)).swapaxes(-1, -2)
    pad = [(0, 0)] * (array.ndim - 2) + [(1, 2), (3, 4)]
    if placement == "part":
        return xp.asarray(np.pad(array, pad, constant_values=np.nan))[..., 1:-2, 3:-4]
    if placement == "part of columns":
        return xp.asarray(np.pad(turned, pad, constant_values=np.nan))[..., 1:-2, 3:-4].swapaxes(-1, -2)
    wide = np.repeat(np.repeat(array, 2, -1), 2, -2)
    return xp.asarray(wide)[..., ::2, ::2]


SIZES = st.tuples(*[st.integers(1, 9)] * 3)
BATCHES = st.sampled_from([((), ()), ((3,), (3,)), ((2,), ()), ((), (2,)), ((1,), (4,))])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # what the plans keep is part of what is tested
@given(SIZES, BATCHES, st.sampled_from(PLACEMENTS), st.sampled_from(PLACEMENTS), st.booleans(), st.data())
def test_any_shapes_and_views_are_multiplied(xp, fake, sizes, batches, place_x, place_y, with_bias, data):
    types = data.draw(st.sampled_from(blas.TYPES))
    alpha, beta = data.draw(st.sampled_from([(1.0, 0.0), (0.5, 0.0), (1.0, 1.0), (2.0, -1.0)]))
    (m, k, n), (of_x, of_y), seed = sizes, batches, data.draw(st.integers(0, 99))
    x, y = numbers(seed, *of_x, m, k, dtype=types[0]), numbers(seed + 1, *of_y, k, n, dtype=types[1])
    bias = numbers(seed + 2, n) if with_bias else None
    before = numbers(seed + 3, *max(of_x, of_y), m, n, dtype=types[2])
    expected = alpha * (exact(x) @ exact(y)) + beta * exact(before)
    if with_bias:
        expected = expected + exact(bias.astype(types[2]))

    out = placed(xp, before, data.draw(st.sampled_from(["rows", "part"]))) if beta or data.draw(st.booleans()) else None
    result = matmul(
        placed(xp, x, place_x), placed(xp, y, place_y), out, alpha=alpha, beta=beta,
        bias=None if bias is None else xp.asarray(bias), dtype=types[2],
    )  # fmt: skip

    assert out is None or result is out
    assert (result.dtype, result.shape) == (types[2], expected.shape)
    assert relative(exact(result), expected) < (2 * UNIT["bfloat16"] if types[2] == "bfloat16" else 1e-5)


def test_only_what_lies_in_no_lines_at_all_is_copied(xp, fake, monkeypatch):
    x = numbers(0, 8, 12)
    copied = []
    copy = type(xp.asarray(x)).copy
    if fake:
        monkeypatch.setattr(twin.ndarray, "copy", lambda x, **options: copied.append(x) or copy(x, **options))
    for placement in PLACEMENTS[:4]:
        matmul(placed(xp, x, placement), placed(xp, x.T, placement))
    assert not copied
    matmul(placed(xp, x, "every second"), xp.asarray(x.T))
    assert len(copied) == (1 if fake else 0)


def test_a_part_of_a_result_is_written_and_nothing_around_it(xp, fake):
    whole = xp.asarray(np.zeros((5, 9), np.float32))
    matmul(xp.asarray(numbers(0, 3, 4)), xp.asarray(numbers(1, 4, 5)), whole[1:4, 2:7])
    assert np.array_equal(exact(whole) != 0, np.pad(np.ones((3, 5), bool), [(1, 1), (2, 2)]))


@pytest.mark.parametrize(
    "shape, strides, expected",
    [
        ((4, 6), (24, 4), (6, 4, 6, 0, False)),
        ((6, 4), (4, 24), (6, 4, 6, 0, True)),
        ((4, 6), (40, 4), (6, 4, 10, 0, False)),
        ((1, 6), (4, 4), (6, 1, 6, 0, False)),  # the stride of an axis of length one means nothing
        ((6, 1), (4, 4), (1, 6, 1, 0, False)),
        ((6, 1), (400, 80), (1, 6, 100, 0, False)),
        ((1, 1), (400, 80), (1, 1, 1, 0, False)),
        ((1, 6), (4, 80), (1, 6, 20, 0, True)),
        ((3, 4, 6), (96, 24, 4), (6, 4, 6, 24, False)),
        ((3, 4, 6), (0, 24, 4), (6, 4, 6, 0, False)),
        ((1, 4, 6), (96, 24, 4), (6, 4, 6, 0, False)),
        ((3, 4, 6), (-96, 24, 4), None),
        ((4, 6), (0, 4), None),  # columns that overlap
        ((4, 6), (-24, 4), None),
        ((4, 6), (48, 8), None),
    ],
)
def test_layouts(shape, strides, expected):
    x = np.lib.stride_tricks.as_strided(np.zeros(1000, np.float32)[300:], shape, strides)
    found = layout(x, batch=3)
    assert (found and (found.rows, found.columns, found.leading, found.stride, found.transposed)) == expected


# --- plans, workspace ------------------------------------------------------------------------------------------------


def test_a_plan_is_made_once_for_each_kind_of_product(xp, fake):
    if fake is None:
        pytest.skip("counts calls of the stand-in")
    x, y, bias = xp.asarray(numbers(0, 4, 8)), xp.asarray(numbers(1, 8, 6)), xp.asarray(numbers(2, 6))
    kinds = [
        lambda: matmul(x, y),
        lambda: matmul(x, y, bias=bias),
        lambda: matmul(x[:3], y),
        lambda: matmul(xp.asarray(numbers(0, 8, 4)).T, y),
        lambda: matmul(x.astype("bfloat16"), y.astype("bfloat16")),
        lambda: matmul(x.astype("bfloat16"), y.astype("bfloat16"), dtype="float32"),
    ]
    queries = "cublasLtMatmulAlgoGetHeuristic"
    kept = []  # at the same addresses there would be new arrays of other alignments
    for _ in range(3):
        kept += [kind() for kind in kinds]
    device = blas.on_device(xp, 0)
    assert len(kinds) <= fake.counts[queries] == len(device.plans)
    assert {plan.a.value for plan in device.plans.values()} <= fake.objects.keys()
    before = fake.counts.copy()
    out = matmul(x, y)
    for _ in range(5):
        matmul(x, y, out)
    assert fake.counts[queries] - before[queries] <= 1  # of a new array of another alignment
    assert fake.counts["cublasLtMatmul"] - before["cublasLtMatmul"] == 6
    assert fake.counts["cublasLtCreate"] == 1


def test_other_alignments_are_other_products(xp, fake):
    if fake is None:
        pytest.skip("looks at the plans")
    memory = xp.asarray(numbers(0, 1000))
    start = -memory.data.ptr % 256 // 4
    for offset in (0, 1, 2, 4, 8, 64, 65):
        x = memory[start + offset : start + offset + 24].reshape(4, 6)
        matmul(x, memory[start : start + 30].reshape(6, 5), bias=memory[start + offset : start + offset + 5])
    alignments = {product.alignments[1] for product in blas.on_device(xp, 0).plans}
    assert alignments == {256, 4, 8, 16, 32}
    assert not fake.refused


def test_a_bias_that_is_not_aligned_is_copied(xp, fake):
    memory, x, y = xp.asarray(numbers(0, 100)), xp.asarray(numbers(1, 4, 6)), xp.asarray(numbers(2, 6, 5))
    start = -memory.data.ptr % 16 // 4
    for offset in range(5):
        bias = memory[start + offset : start + offset + 5]
        assert relative(exact(matmul(x, y, bias=bias)), exact(x) @ exact(y) + exact(bias)) < 1e-5


def test_a_bias_may_lie_anywhere(xp, fake):
    x, y, bias = xp.asarray(numbers(0, 4, 6)), xp.asarray(numbers(1, 6, 5)), xp.asarray(numbers(2, 10))[::2]
    assert relative(exact(matmul(x, y, bias=bias)), exact(x) @ exact(y) + exact(bias)) < 1e-5


def test_all_products_of_a_device_share_a_workspace_of_32_mebibytes(xp, fake):
    if fake is None:
        pytest.skip("looks at what the library is given")
    for rows in range(1, 5):
        matmul(xp.asarray(numbers(0, rows, 6)), xp.asarray(numbers(1, 6, 5)))
    assert {wishes[1] for _, _, wishes, _ in fake.kernels} == {2**25}
    assert fake.workspaces == {(blas.on_device(xp, 0).workspace.data.ptr, 2**25)}


def test_the_bias_of_each_call_is_added_not_that_of_the_plan(xp, fake):
    x, y = xp.asarray(numbers(0, 4, 6)), xp.asarray(numbers(1, 6, 8))
    for seed in range(4):
        bias = xp.asarray(numbers(seed, 8))
        assert relative(exact(matmul(x, y, bias=bias)), exact(x) @ exact(y) + exact(bias)) < 1e-5


def test_the_precision_in_force_decides_on_tf32(xp, fake):
    x, y = numbers(0, 64, 128), numbers(1, 128, 32)
    on_device = xp.asarray(x), xp.asarray(y)
    with precision("tf32"):
        rounded = relative(exact(matmul(*on_device)), exact(x) @ exact(y))
    plain = relative(exact(matmul(*on_device)), exact(x) @ exact(y))
    assert plain < 1e-6
    assert rounded < 2.0**-9  # of 10 bits of mantissa; what does not fit may be cut off
    half = xp.asarray(x.astype("bfloat16"))
    with precision("tf32"):
        matmul(half, half.T)  # there is no TF32 of bfloat16
    if fake:  # the library may ignore that TF32 is allowed
        assert rounded > 1e-6
        assert fake.computes == [77, 68, 68]


def test_tuning_times_the_proposals_and_leaves_the_result_right(xp, fake):
    x, y = xp.asarray(numbers(0, 4, 6)), xp.asarray(numbers(1, 6, 8))
    out = xp.asarray(np.ones((4, 8), np.float32))
    with tuned(8):
        matmul(x, y, out, beta=1.0)
    assert relative(exact(out), exact(x) @ exact(y) + 1) < 1e-5
    if fake:
        assert fake.counts["cublasLtMatmul"] == 3 * 12 + 1
        assert fake.counts["cublasLtMatmulAlgoGetHeuristic"] == 1
    matmul(x, y, out)
    if fake:
        assert fake.counts["cublasLtMatmul"] == 3 * 12 + 2


@pytest.mark.parametrize("fastest", [0, 1, 2])
def test_tuning_keeps_the_fastest(xp, monkeypatch, fastest):
    if xp is not twin:
        pytest.skip("counts on the order of the stand-in's proposals")
    with fake_cublaslt.installed() as fake:
        monkeypatch.setattr(blas, "_seconds", lambda run, plan, stream: plan.kernel.algorithm[0] != 1 + fastest)
        x = xp.asarray(numbers(0, 4, 4))
        with tuned(8):
            matmul(x, x)
        (plan,) = blas.on_device(xp, 0).plans.values()
        assert (plan.kernel.algorithm[0], len(fake.kernels)) == (1 + fastest, 3)
        matmul(x[:2], x)  # not tuned: the heuristic's favourite
        assert [plan.kernel.algorithm[0] for plan in blas.on_device(xp, 0).plans.values()] == [1 + fastest, 4]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes, options, sentence",
    [
        (((2, 3), (4, 5)), {}, r"matmul needs x \(M, K\) and y \(K, N\), .* got \(2, 3\) and \(4, 5\)"),
        (((2, 3), (0, 3, 5)), {}, "not empty"),
        (((2, 2, 3), (3, 3, 5)), {}, "one batch axis"),
        (((3,), (3, 5)), {}, "one batch axis"),
        (((1, 1, 2, 3), (3, 5)), {}, "one batch axis"),
        (((2, 3), (3, 5)), {"beta": 1.0}, "beta=1.0 needs an out to add to"),
        (((2, 3), (3, 5)), {"bias": (2,)}, r"bias must have shape \(5,\), .* got \(2,\)"),
        (((2, 3), (3, 5)), {"out": (5, 2)}, r"out must have shape \(2, 5\) and contiguous rows, got \(5, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_a_sentence(xp, fake, shapes, options, sentence):
    zeros = {key: xp.asarray(np.zeros(value, np.float32)) for key, value in options.items() if key != "beta"}
    with pytest.raises(ValueError, match=sentence):
        matmul(*(xp.asarray(np.zeros(shape, np.float32)) for shape in shapes), **{**options, **zeros})


def test_an_out_by_columns_is_refused(xp, fake):
    x = xp.asarray(numbers(0, 3, 3))
    with pytest.raises(ValueError, match="contiguous rows"):
        matmul(x, x, xp.asarray(numbers(1, 3, 3)).T)


OTHER_TYPES = [("float64",) * 3, ("float32", "bfloat16", "float32"), ("float32", "float32", "bfloat16")]


@pytest.mark.parametrize("types", OTHER_TYPES)
def test_other_types_are_refused_in_a_sentence(xp, fake, types):
    x, y = (xp.asarray(np.zeros((4, 4), dtype)) for dtype in types[:2])
    with pytest.raises(TypeError, match=f"got {types[0]} and {types[1]} to {types[2]}"):
        matmul(x, y, dtype=types[2])


def test_what_the_library_refuses_is_told_with_the_product(xp, monkeypatch):
    if xp is not twin:
        pytest.skip("the library itself refuses nothing here")
    with fake_cublaslt.installed(proposals=0):
        x, y, bias = (xp.asarray(np.zeros(shape, "bfloat16")) for shape in ((7, 2, 3), (3, 5), (5,)))
        words = r"AlgoGetHeuristic for 7 times \(2, 3\) @ \(3, 5\) \+ bias, bfloat16 to float32: not supported .*15"
        with pytest.raises(RuntimeError, match=words):
            matmul(x, y, bias=bias, dtype="float32")
    monkeypatch.setattr(cublaslt, "library", lambda: None)
    blas.on_device.cache_clear()
    assert not blas.available()
    with pytest.raises(RuntimeError, match="pip install nvidia-cublas"):
        matmul(x, y)


# --- the library itself ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(cublaslt.library() is None, reason="cublasLt is not installed")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("types", blas.TYPES)
def test_the_library_takes_the_descriptions_without_a_gpu_too(types, transposed):
    x, y, z = (layout(np.zeros(shape, dtype), 3) for shape, dtype in zip(((3, 8, 16), (16, 24), (3, 8, 24)), types))
    product = cublaslt.Product(y._replace(transposed=transposed), x, z, 68, (16, 16, 16, 16))
    description, *matrices = cublaslt.describe(product, bias=4096)
    expected = {cublaslt.TRANSA: transposed, cublaslt.TRANSB: 0, cublaslt.EPILOGUE: 4, cublaslt.BIAS_DATA_TYPE: z.type}
    for attribute, value in expected.items():
        assert _attribute("MatmulDesc", description, attribute, ctypes.c_int32) == value
    assert _attribute("MatmulDesc", description, cublaslt.BIAS_POINTER, ctypes.c_uint64) == 4096
    for made, matrix in zip(matrices, (y, x, z)):
        numbers_of = zip((0, 2, 3, 4, 5, 6), (4, 8, 8, 8, 4, 8), matrix)
        for attribute, size, value in numbers_of:
            kind = ctypes.c_int32 if size == 4 else ctypes.c_int64
            assert _attribute("MatrixLayout", made, attribute, kind) == value
    wishes = {1: ctypes.c_uint64(1 << 25), **{key: ctypes.c_uint32(16) for key in cublaslt.MIN_ALIGNMENTS}}
    wish = cublaslt.make("MatmulPreference", "a test", attributes=wishes)
    assert _attribute("MatmulPreference", wish, 1, ctypes.c_uint64) == 1 << 25
    with pytest.raises(RuntimeError, match="invalid value"):
        cublaslt.set_attribute("MatmulDesc", "a test", description, cublaslt.TRANSA, ctypes.c_uint8(0))


def _attribute(kind: str, made: ctypes.c_void_p, attribute: int, number: type) -> int:
    value, written = number(), ctypes.c_size_t()
    get = getattr(cublaslt.library(), f"cublasLt{kind}GetAttribute")
    size = ctypes.c_size_t(ctypes.sizeof(value))
    assert get(made, attribute, ctypes.byref(value), size, ctypes.byref(written)) == 0
    assert written.value == size.value
    return value.value
