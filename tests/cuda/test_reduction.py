"""The sum over rows against NumPy's, and where it takes the engine's place."""

import numpy as np
import pytest

from minivit.autograd import sum_of_rows
from minivit.cuda.reduction import column_sums, sum_rows
from tests.compare import UNIT, exact, numbers


@pytest.mark.parametrize("rows, width", [(1, 1), (64, 3), (65, 40), (5000, 33)])
def test_column_sums(xp, dtype, rows, width):
    x = numbers(0, rows, width, dtype=dtype)
    sums = column_sums(xp.asarray(x))
    assert sums.dtype == "float32"
    assert sums.shape == (width,)
    np.testing.assert_allclose(exact(sums), exact(x).sum(0), rtol=0, atol=rows**0.5 * 16 * UNIT["float32"])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_engines_sum_of_rows(xp, dtype):
    rows = numbers(1, 70, 5, dtype=dtype)
    found = sum_rows(xp.asarray(rows))
    assert found.dtype == dtype
    np.testing.assert_allclose(exact(found), sum_of_rows(exact(rows)), rtol=1e-4)
