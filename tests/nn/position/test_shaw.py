import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minivit import Tensor
from minivit.nn.position import ShawPosition
from tests.nn.position.test_relative import attend, randomise
from tests.strategies import generators


@given(st.integers(1, 8), st.integers(0, 2), st.integers(1, 9), generators)
def test_it_is_the_papers_formula(columns, prefix, reach, rng):
    """Pair by pair: e_ij = q_i (k_j + a^K)ᵀ / √d, z_i = Σ α_ij (v_j + a^V)."""
    layer = randomise(ShawPosition((1, columns), prefix, 2, 4, max_distance=reach), rng)
    n = layer.num_tokens
    q, k, v = rng.standard_normal((3, 1, 2, n, 4))
    a_k, a_v = layer.relative_keys.numpy(), layer.relative_values.numpy()
    row = [[max(-reach, min(reach, j - i)) + reach for j in range(n)] for i in range(n)]
    expected = np.zeros(v.shape)
    for h in range(2):
        for i in range(n):
            e = np.array([q[0, h, i] @ (k[0, h, j] + a_k[row[i][j]]) / 2 for j in range(n)])
            alpha = np.exp(e) / np.exp(e).sum()
            expected[0, h, i] = sum(alpha[j] * (v[0, h, j] + a_v[row[i][j]]) for j in range(n))
    np.testing.assert_allclose(attend(layer, Tensor(q), Tensor(k), Tensor(v)).numpy(), expected, atol=1e-12)


def test_tables_of_zeros_add_nothing():
    layer = ShawPosition((2, 2), 1, 2, 4)
    x, weights = np.ones((1, 2, 5, 4), np.float32), np.ones((1, 2, 5, 5), np.float32)
    assert not layer.scores(Tensor(x)).numpy().any()
    assert not layer.values(Tensor(weights)).numpy().any()
