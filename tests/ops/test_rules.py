"""The rules that hold for every op, on the cases of ``tests/strategies.py``."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import ops
from tests.rules import check, kept
from tests.strategies import CASES, is_float
from tests.twins import FORMULAS, TWINS


def test_every_op_has_cases_and_a_twin():
    assert sorted(CASES) == sorted(ops.__all__), "each op needs a strategy in tests/strategies.py"
    assert sorted([*TWINS, *FORMULAS]) == sorted(ops.__all__), "each op needs a twin or a formula in tests/twins.py"


KEPT_ARGUMENTS = {
    "add_layer_norm": {2}, "amax": {0}, "conv2d": {0, 1}, "cross_entropy": {1}, "div": {1}, "layer_norm": {1},
    "linear": {0, 1}, "log": {0}, "matmul": {0, 1}, "max_pool2d": {0}, "mlp": {0, 1, 3}, "mul": {0, 1}, "power": {0},
    "rms_norm": {1}, "scaled_dot_product_attention": {0, 1, 2}, "self_attention": {0},
}  # fmt: skip


@pytest.mark.parametrize("name", ops.__all__)
@settings(max_examples=10)
@given(data=st.data())
def test_pullback_keeps_no_argument_that_it_does_not_need(name, data):
    """What it needs only the shape of, it does not mention, so that the array dies as soon as nobody else holds it."""
    case = data.draw(CASES[name])
    _, pullback = getattr(ops, name).raw(*case.args, **case.options)
    held = kept(pullback)
    arguments = {i for i, x in enumerate(case.args) if is_float(x) and any(np.may_share_memory(x, a) for a in held)}
    assert arguments <= KEPT_ARGUMENTS.get(name, set())


@pytest.mark.parametrize("name", ops.__all__)
@given(data=st.data())
def test_op_keeps_the_rules(name, data):
    check(getattr(ops, name), data.draw(CASES[name]))
