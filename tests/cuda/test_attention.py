"""The attention kernels against the formula in float64, and what they are made of against the manual."""

import math

import numpy as np
import pytest

from minivit import ops
from minivit.autograd import Tensor, no_grad
from minivit.backend import FUSED
from minivit.cuda import attention
from minivit.cuda.attention import scaled_dot_product_attention, self_attention
from minivit.cuda.launch import options, source
from minivit.cuda.precision import PRECISIONS, precision
from tests.compare import UNIT, errors, exact, numbers
from tests.cuda import fake_cublaslt
from tests.cupy_twin import forbid_synchronisation

TINY = 2.0**-126  # bfloat16 has no smaller normal numbers
U = UNIT["bfloat16"]
LANES = np.arange(32)

# --- the instructions ------------------------------------------------------------------------------------------------

TRY = """
extern "C" __global__ void try_product(const u32* a, const u32* b, float* c) {
    mma(c + 4 * threadIdx.x, a + 4 * threadIdx.x, b + 2 * threadIdx.x);
}
extern "C" __global__ void try_loads(const bf16* x, u32* as_they_are, u32* transposed) {
    bf16* row = shared_memory() + 8 * threadIdx.x;  // 32 rows of 8 numbers: four matrices
    for (int i = 0; i < 8; i++) row[i] = x[8 * threadIdx.x + i];
    __syncthreads();
    load_matrices(as_they_are + 4 * threadIdx.x, row);
    load_transposed_matrices(transposed + 4 * threadIdx.x, row);
}
"""


def instruction(xp, name):
    constants = options({"TOKENS": 16, "HEAD": 32, "WARPS": 1})
    return xp.RawModule(code=source("attention") + TRY, options=constants).get_function(name)


def spread(matrix: np.ndarray, of_t: int, of_g: int, *of_values: int) -> np.ndarray:
    """The numbers of each lane, (32, values), of a matrix in column order.

    The strides are those of lane % 4, lane // 4 and of each bit of a value's number, as the library CUTLASS gives them
    (include/cute/atom/mma_traits_sm80.hpp): told differently than in the kernel, but of the same instruction.
    """
    values = sum(stride * (np.arange(2 ** len(of_values)) >> i & 1) for i, stride in enumerate(of_values))
    return matrix.ravel(order="F")[(of_t * (LANES % 4) + of_g * (LANES // 4))[:, None] + values]


def test_the_tensor_core_multiplies_what_the_lanes_hold(xp):
    a, b, c = numbers(0, 16, 16, dtype="bfloat16"), numbers(1, 16, 8, dtype="bfloat16"), numbers(2, 16, 8)
    of_lanes = spread(a, 32, 1, 16, 8, 128), spread(np.ascontiguousarray(b.T), 16, 1, 8, 64), spread(c, 32, 1, 16, 8)
    left, right, sums = map(xp.asarray, (of_lanes[0].view("u4"), of_lanes[1].view("u4"), of_lanes[2]))
    instruction(xp, "try_product")((1,), (32,), (left, right, sums))
    np.testing.assert_allclose(exact(sums), spread(exact(c) + exact(a) @ exact(b), 32, 1, 16, 8), rtol=0, atol=1e-5)


def test_matrices_come_from_shared_memory_row_by_row_or_transposed(xp):
    x = numbers(0, 4, 8, 8, dtype="bfloat16")
    found = xp.empty((32, 4), "uint32"), xp.empty((32, 4), "uint32")
    instruction(xp, "try_loads")((1,), (32,), (xp.asarray(x), *found), shared_mem=512)
    for registers, matrices in zip(found, (x, x.swapaxes(1, 2))):
        pairs = np.ascontiguousarray(matrices).view("u4").reshape(4, 32)  # a lane's is the next pair of a row
        np.testing.assert_array_equal(exact(registers), pairs.T)


# --- whole rows ------------------------------------------------------------------------------------------------------


def with_bounds(qkv: np.ndarray, dy: np.ndarray, heads: int, scale: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(O, its largest error) and (dqkv, …) in float64, from the roundings of the kernel, each at most u = 2⁻⁸.

    P, dS and the results are rounded to bfloat16; D is computed from O as it was rounded. Scores are sums in float32,
    of which an error of e makes one of e · P in P.
    """
    batch, tokens = dy.shape[:2]
    parts = *np.split(qkv, 3, axis=-1), dy
    q, k, v, do = (x.reshape(batch, tokens, heads, -1).swapaxes(1, 2) for x in parts)  # (B, H, N, d)
    s = scale * q @ k.swapaxes(2, 3)
    e = 4 * (q.shape[-1] + 8) * UNIT["float32"] * abs(scale) * (abs(q) @ abs(k).swapaxes(2, 3)).max()
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    o = p @ v
    o_error = (U + e) * (p @ abs(v)) + U * abs(o)
    d_error = (abs(do) * o_error).sum(-1, keepdims=True) + 1e-5
    ds = p * (do @ v.swapaxes(2, 3) - (do * o).sum(-1, keepdims=True))
    ds_error = (U + e) * abs(ds) + p * d_error
    dq, dk, dv = scale * ds @ k, scale * ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ do
    dq_error = abs(scale) * ds_error @ abs(k) + U * abs(dq)
    dk_error = abs(scale) * ds_error.swapaxes(2, 3) @ abs(q) + U * abs(dk)
    dv_error = (U + e) * (p.swapaxes(2, 3) @ abs(do)) + U * abs(dv)

    def side_by_side(*parts):
        return np.stack([x.swapaxes(1, 2) for x in parts], axis=2).reshape(batch, tokens, -1)

    return [
        (side_by_side(o), side_by_side(o_error)),
        (side_by_side(dq, dk, dv), side_by_side(dq_error, dk_error, dv_error)),
    ]


def check(xp, qkv: np.ndarray, heads: int, scale: float | None = None) -> None:
    """The stand-in against the formula, number by number, and against itself, to the last bit."""
    factor = 1 / math.sqrt(qkv.shape[-1] // 3 // heads) if scale is None else scale
    dy = numbers(9, *qkv.shape[:2], qkv.shape[2] // 3, dtype="bfloat16")
    given, given_dy = xp.asarray(qkv), xp.asarray(dy)
    with precision("bf16"), forbid_synchronisation():
        found, again = (self_attention(given, heads, scale) for _ in range(2))
        cotangents = [pullback(given_dy) for _, pullback in (found, found, again)]
    right, right_pullback = ops.self_attention.raw(exact(qkv), heads, scale)
    (value, error), (cotangent, cotangent_error) = with_bounds(exact(qkv), exact(dy), heads, factor)
    np.testing.assert_allclose(value, right, rtol=1e-9, atol=1e-12)  # the bounds are of the same function
    np.testing.assert_allclose(cotangent, right_pullback(exact(dy)), rtol=1e-9, atol=1e-12)
    assert found[0].dtype == "bfloat16"
    assert (abs(exact(found[0]) - value) <= 1.02 * error + TINY).all()
    assert (abs(exact(cotangents[0]) - cotangent) <= 1.02 * cotangent_error + TINY).all()
    np.testing.assert_array_equal(exact(found[0]), exact(again[0]))
    for other in cotangents[1:]:
        np.testing.assert_array_equal(exact(cotangents[0]), exact(other))


@pytest.fixture
def no_products(monkeypatch):
    """What the kernels do not know is left to cublasLt: here it would raise."""
    monkeypatch.setattr(attention, "_attend", None)


FEW = [(2, 1, 1, 32), (2, 17, 3, 32), (1, 65, 2, 64)]  # images, tokens, heads, channels of a head
MORE = [
    (1, 5, 2, 64),
    (2, 16, 1, 32),
    (3, 64, 2, 32),
    (1, 197, 1, 64),
    (1, 197, 3, 32),
    (1, 256, 1, 32),
    (1, 256, 2, 64),
]


@pytest.mark.parametrize("shape", FEW + [pytest.param(s, marks=pytest.mark.slow) for s in MORE], ids=str)
def test_whole_rows_agree_with_the_formula(xp, no_products, shape):
    batch, tokens, heads, head = shape
    check(xp, numbers(0, batch, tokens, 3 * heads * head, dtype="bfloat16"), heads)


@pytest.mark.parametrize("size, scale", [(60, None), (1e-3, 1.0), (1, 0.7), (4, -0.2)])
def test_large_small_and_negative_scores(xp, no_products, size, scale):
    """The largest scores are in the thousands: e to that power is in no floating-point format."""
    check(xp, numbers(1, 1, 17, 3 * 2 * 32, dtype="bfloat16", scale=size), 2, scale)


def test_scores_far_below_zero_give_rows_past_the_last_key_no_weight(xp, no_products):
    """There scores are zero, and e^(0 − L) overflows for log-sum-exps L like these."""
    qkv = numbers(2, 1, 17, 3 * 2 * 32, dtype="bfloat16")
    qkv[..., :64], qkv[..., 64:128] = 8 * abs(qkv[..., :64]), -8 * abs(qkv[..., 64:128])
    check(xp, qkv, 2)


def test_equal_scores_share_the_weight_among_the_keys_and_no_others(xp, no_products):
    qkv = np.zeros((1, 17, 3 * 32), "bfloat16")
    qkv[..., 64:] = numbers(0, 17, 32)
    with precision("bf16"):
        found = exact(self_attention(xp.asarray(qkv), 1)[0])
    np.testing.assert_allclose(found[0], np.tile(exact(qkv)[0, :, 64:].mean(0), (17, 1)), rtol=0, atol=2 * U)


def test_not_a_number_stays_with_its_head_and_its_image(xp, no_products):
    qkv = numbers(0, 2, 17, 3 * 2 * 32, dtype="bfloat16")
    qkv[0, 3, 64 + 32] = np.nan  # a key of the second head of the first image
    with precision("bf16"):
        value, pullback = self_attention(xp.asarray(qkv), 2)
        cotangent = pullback(xp.asarray(numbers(1, 2, 17, 64, dtype="bfloat16")))
    bad, bad_cotangent = (np.isnan(exact(x)).reshape(2, 17, -1, 2, 32) for x in (value, cotangent))
    for found in bad, bad_cotangent:
        np.testing.assert_array_equal(found.any((1, 2, 4)), [[False, True], [False, False]])
    assert bad[0, :, :, 1].all()  # every query sees that key


def test_float32_and_strides_are_brought_into_order(xp, no_products):
    """The result is bfloat16, and the cotangent has the type of qkv."""
    qkv, dy = numbers(0, 2, 17, 3 * 32, dtype="bfloat16"), numbers(1, 2, 17, 32, dtype="bfloat16")
    with precision("bf16"):
        value, pullback = self_attention(xp.asarray(qkv), 1)
        cotangent = pullback(xp.asarray(dy))
        again, pullback = self_attention(xp.asarray(qkv.astype("f").swapaxes(0, 1)).swapaxes(0, 1), 1)
        wide = pullback(xp.asarray(dy.astype("f").swapaxes(1, 2)).swapaxes(1, 2))
        flat = xp.asarray(np.concatenate([qkv[:1, 0, :1].ravel(), qkv.ravel()]))  # two bytes off
        third, _ = self_attention(flat[1:].reshape(qkv.shape), 1)
    assert (again.dtype, wide.dtype) == ("bfloat16", "float32")
    for left, right in ((value, again), (value, third), (cotangent, wide)):
        np.testing.assert_array_equal(exact(left), exact(right))


# --- products and softmax --------------------------------------------------------------------------------------------


@pytest.fixture
def products(xp, monkeypatch):
    """cublasLt, or what takes its place; and the engine finds these stand-ins, on the twin too."""
    for stand_in in self_attention, scaled_dot_product_attention:
        monkeypatch.setitem(FUSED, stand_in.formula, stand_in)
    with fake_cublaslt.installed(xp):
        yield


# A, dS and the results are rounded, one after another; S, dA and all sums are float32. TF32 rounds the operands
BIASES = [None, (2, 3, 4, 9), (3, 4, 9), (4, 9), (1, 3, 4, 9), (1, 3, 1, 9), (2, 1, 1, 9), (9,)]
ROUNDING = {"fp32": 4e-6, "tf32": 4 * 2.0**-11, "bf16": 4 * U}


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("shape", [(2, 9, 3, 6), (1, 9, 2, 48)], ids=str)
def test_self_attention_of_other_sizes_goes_through_products(xp, products, shape, name):
    batch, tokens, heads, head = shape
    args = (numbers(0, batch, tokens, 3 * heads * head, dtype="bfloat16").astype("f"),)
    with precision(name):
        assert max(errors(self_attention, xp, args, num_heads=heads)) < ROUNDING[name]
        value, pullback = self_attention(xp.asarray(args[0]), heads)
    assert value.dtype == ("bfloat16" if name == "bf16" else "float32")
    assert pullback(value).dtype == "float32"


def test_more_tokens_than_the_kernel_knows_and_its_heads_in_float32(xp, products, monkeypatch):
    monkeypatch.setattr(attention, "_whole_rows", None)
    monkeypatch.setattr(attention, "MAX_TOKENS", 8)
    for name in PRECISIONS:
        with precision(name):
            args = (numbers(0, 1, 9, 3 * 32, dtype="bfloat16").astype("f"),)
            assert max(errors(self_attention, xp, args, num_heads=1)) < ROUNDING[name]


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("bias", BIASES, ids=str)
def test_queries_that_are_not_the_keys_with_and_without_a_bias(xp, products, bias, name):
    q, k, v = (numbers(i, 2, 3, n, 5, dtype="bfloat16").astype("f") for i, n in enumerate((4, 9, 9)))
    args = (q, k, v) if bias is None else (q, k, v, numbers(3, *bias))
    with precision(name):
        found = errors(scaled_dot_product_attention, xp, args, scale=0.3)
        value, pullback = scaled_dot_product_attention(*map(xp.asarray, args))
    assert len(found) == 1 + len(args)
    assert max(found) < ROUNDING[name]
    assert value.dtype == ("bfloat16" if name == "bf16" else "float32")
    assert all(x is None or x.dtype == "float32" for x in pullback(value))  # backward in the precision of forward


def test_through_the_engine(xp, products):
    """Views and transposed views come in, gradients go out, in bfloat16 between float32 ends."""
    x = Tensor(xp.asarray(numbers(0, 2, 9, 3 * 32)), requires_grad=True)
    q, k, v = (x[..., 32 * i : 32 * (i + 1)].reshape(2, 9, 2, 16).transpose(0, 2, 1, 3) for i in range(3))
    with precision("bf16"), forbid_synchronisation():
        y = ops.scaled_dot_product_attention(q, k, v)
        z = ops.self_attention(x, 1)
    assert (y.dtype, z.dtype) == ("bfloat16", "bfloat16")
    y.backward(y.data)
    assert x.grad.dtype == "float32"
    with no_grad(), precision("bf16"):
        np.testing.assert_array_equal(exact(ops.self_attention(x, 1).data), exact(z.data))


# --- the formula -----------------------------------------------------------------------------------------------------


def test_what_is_no_case_for_a_gpu_is_left_to_the_formula(xp, monkeypatch):
    monkeypatch.setattr(attention, "_whole_rows", None)
    monkeypatch.setattr(attention, "_attend", None)
    for x in numbers(0, 1, 3, 96, dtype="float64"), numbers(0, 0, 3, 96):
        with precision("bf16"):
            assert self_attention(xp.asarray(x), 1)[0].shape == (*x.shape[:2], 32)
    q = xp.asarray(numbers(0, 1, 1, 3, 4, dtype="float64"))
    assert scaled_dot_product_attention(q, q, q)[0].dtype == "float64"


def test_the_formula_says_what_is_wrong(xp):
    x, q = xp.asarray(numbers(0, 1, 5, 10)), xp.asarray(numbers(0, 1, 2, 3, 4))
    with pytest.raises(ValueError, match="a multiple of num_heads=4"):
        self_attention(x, 4)
    with pytest.raises(ValueError, match=r"attention needs q \(B, H, N, d\)"):
        scaled_dot_product_attention(q, q[:, :1], q[:, :1])
    with pytest.raises(ValueError, match="a bias like its scores"):
        scaled_dot_product_attention(q, q, q, xp.asarray(numbers(0, 2, 3)))
