"""Embeddings that add a number to each score: the bias table, and T5's buckets."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.nn.position import BiasTable, T5Bias
from minivit.nn.position.t5 import bucket_starts, buckets
from tests.nn.position.test_relative import randomise
from tests.strategies import generators

sides = st.integers(1, 4)


@given(sides, sides, st.integers(0, 2), generators)
def test_moving_both_tokens_leaves_their_bias(rows, columns, prefix, rng):
    layer = randomise(BiasTable((rows, columns), prefix, 2, 4), rng)
    bias = layer.bias().numpy()[:, prefix:, prefix:].reshape(2, rows, columns, rows, columns)
    np.testing.assert_array_equal(bias[:, 1:, :, 1:, :], bias[:, :-1, :, :-1, :])
    np.testing.assert_array_equal(bias[:, :, 1:, :, 1:], bias[:, :, :-1, :, :-1])
    corner = bias[:, 0, 0].reshape(2, -1), bias[:, -1, -1].reshape(2, -1)  # of displacements up to −, and up to +
    assert len(np.unique(np.concatenate(corner, axis=1)[0])) == 2 * rows * columns - 1  # direction counts, not distance


@given(sides, sides, st.integers(1, 3), generators)
def test_prefix_tokens_have_three_numbers_of_their_own(rows, columns, prefix, rng):
    layer = randomise(BiasTable((rows, columns), prefix, 2, 4), rng)
    bias, (to_patch, from_patch, among) = layer.bias().numpy(), layer.relative_position_bias_table.numpy()[-3:]
    for h in range(2):
        assert (bias[h, :prefix, prefix:] == to_patch[h]).all()
        assert (bias[h, prefix:, :prefix] == from_patch[h]).all()
        assert (bias[h, :prefix, :prefix] == among[h]).all()


@given(st.integers(1, 30), st.integers(0, 2), generators)
def test_t5_is_constant_along_diagonals_of_the_sequence(columns, prefix, rng):
    layer = randomise(T5Bias((2, columns), prefix, 3, 4), rng)
    bias, table = layer.bias().numpy(), layer.relative_attention_bias.numpy()
    np.testing.assert_array_equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    for j in range(layer.num_tokens):
        np.testing.assert_array_equal(bias[:, 0, j], table[buckets(np.array(j))])  # a key j places after the query
        np.testing.assert_array_equal(bias[:, j, 0], table[buckets(np.array(-j))])


@given(st.integers(1, 8).map(lambda quarter: 4 * quarter), st.integers(10, 400))
def test_buckets_are_the_logarithms_of_the_paper(num_buckets, max_distance):
    """Where a logarithm is not within rounding of a whole number."""
    exact = num_buckets // 4
    distance = np.arange(2 * max_distance)
    got = buckets(-distance, num_buckets, max_distance)
    np.testing.assert_array_equal(buckets(distance[1:], num_buckets, max_distance), got[1:] + num_buckets // 2)
    for d in distance.tolist():
        if d < exact:
            assert got[d] == d
            continue
        place = exact * math.log(d / exact) / math.log(max_distance / exact)
        if abs(place - round(place)) > 1e-9:
            assert got[d] == exact + min(int(place), exact - 1)
    assert len(bucket_starts(num_buckets, max_distance)) == num_buckets // 2


@pytest.mark.parametrize(("distance", "bucket"), [(0, 0), (-7, 7), (-8, 8), (-12, 9), (-16, 10), (-127, 15), (1, 17)])
def test_some_buckets(distance, bucket):
    assert buckets(np.array(distance)) == bucket
