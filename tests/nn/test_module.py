"""The tree of modules: how it is walked, changed, saved, loaded, printed and watched."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Parameter, Tensor, ops
from minivit.nn import Dropout, Identity, Linear, Module, observe
from tests.nn.test_gradients import randomise
from tests.strategies import generators


class Scale(Module):
    def __init__(self):
        self.factor = Parameter([2.0])

    def forward(self, x):
        return x * self.factor


class Net(Module):
    """Parts as attributes and in lists, tuples and dicts; a tied layer, a tied parameter, and what is no part."""

    def __init__(self):
        self.token = Parameter(np.ones((1, 2), np.float32))
        self.layers = [Linear(2, 2), (Linear(2, 3, bias=False), Dropout(0.5))]
        self.heads = {"a": Scale(), "b": [Parameter([1.0, 2.0, 3.0])]}
        self.again = self.layers[0]
        self.tied = self.token
        self.missing = None
        self.constant = Tensor([1.0])
        self.note = "a string"

    def forward(self, x):
        x = self.again(self.layers[0](x + self.token))
        (wide, drop) = self.layers[1]
        return self.heads["a"](drop(wide(x))) + self.heads["b"][0]


NAMES = ["token", "heads.b.0", "layers.0.weight", "layers.0.bias", "layers.1.0.weight", "heads.a.factor"]
MODULES = ["", "layers.0", "layers.1.0", "layers.1.1", "heads.a", "again"]


@pytest.fixture
def net():
    return randomise(Net(), np.random.default_rng(0)).astype(np.float32)


# --- walking the tree ----------------------------------------------------------------------------------------------


def test_names_are_paths_in_the_order_of_attributes(net):
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [name for name, _ in net.named_modules()] == MODULES
    assert net.parameters() == [p for _, p in net.named_parameters()]
    assert [name for name, _ in net.named_modules("net")] == ["net", *(f"net.{name}" for name in MODULES[1:])]


def test_a_shared_parameter_or_layer_counts_once(net):
    assert net.num_parameters() == 2 + 3 + (4 + 2) + 6 + 1
    assert len({id(p) for p in net.parameters()}) == len(net.parameters()) == len(NAMES)
    assert dict(net.named_modules())["again"] is dict(net.named_modules())["layers.0"]


def test_gradients_of_all_uses_of_a_shared_layer_add_up():
    net, x = randomise(Net().eval(), np.random.default_rng(0)), Tensor(np.ones((1, 2)))
    net(x).backward(np.ones((1, 3)))
    shared = net.layers[0].weight.grad

    untied = randomise(Net().eval(), np.random.default_rng(0))
    untied.again = Linear(2, 2).astype(np.float64)
    untied.again.load_state_dict(untied.layers[0].state_dict())
    untied(x).backward(np.ones((1, 3)))
    np.testing.assert_allclose(shared, untied.layers[0].weight.grad + untied.again.weight.grad, rtol=1e-12)


def test_a_part_that_is_replaced_is_found(net):
    net.layers.append(Scale())
    net.token = None
    names = [name for name, _ in net.named_parameters()]
    assert names == ["heads.b.0", "tied", *NAMES[2:5], "layers.2.factor", "heads.a.factor"]


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match=r"Module has no forward\(\)"):
        Module()(1)


# --- changing all parts --------------------------------------------------------------------------------------------


def test_train_and_eval_reach_all_modules(net):
    assert all(module.training for _, module in net.named_modules())
    assert net.eval() is net
    assert not any(module.training for _, module in net.named_modules())
    assert net.train() is net
    assert all(module.training for _, module in net.named_modules())
    assert not any(module.training for _, module in net.train(False).named_modules())
    assert Net().training


def test_astype_converts_all_parameters_and_what_they_compute(net):
    assert {p.dtype for p in net.parameters()} == {np.dtype(np.float32)}
    before = net.state_dict()
    assert net.astype(np.float64) is net
    for name, p in net.named_parameters():
        assert p.dtype == np.float64
        np.testing.assert_array_equal(p.data, before[name])
    assert net(Tensor(np.ones((1, 2)))).dtype == np.float64


def test_to_the_device_where_it_is_changes_nothing(net):
    before = [p.data for p in net.parameters()]
    assert net.to("cpu") is net
    assert all(p.data is data for p, data in zip(net.parameters(), before))


def test_to_an_unknown_device_gets_a_sentence(net):
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'"):
        net.to("tpu")


def test_zero_grad_forgets_all_gradients(net):
    net(Tensor(np.ones((1, 2), np.float32))).backward(np.ones((1, 3), np.float32))
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


# --- saving and loading --------------------------------------------------------------------------------------------


@given(generators, st.sampled_from([np.float32, np.float64]), st.sampled_from([np.float32, np.float64]))
def test_weights_survive_saving_and_loading_in_another_precision(rng, saved, loaded):
    source, target = randomise(Net(), rng).astype(saved), Net().astype(loaded)
    arrays = {name: p.data for name, p in target.named_parameters()}
    state = source.state_dict()
    assert list(state) == NAMES
    target.load_state_dict(state)
    for name, p in target.named_parameters():
        assert p.data is arrays[name], "loading writes in place: an optimizer may hold this array"
        assert p.dtype == loaded
        np.testing.assert_array_equal(p.data, state[name].astype(loaded))


def test_a_state_dict_is_a_copy(net):
    state = net.state_dict()
    net.token.data += 1
    assert not (state["token"] == net.token.data).any()
    state["token"][...] = 7
    assert not (net.token.data == 7).any()


def wrong_state(net):
    state = net.state_dict() | {"extra": np.zeros(1), "other": np.zeros(1)}
    del state["token"], state["heads.b.0"]
    state |= {"layers.0.weight": np.zeros((3, 2)), "heads.a.factor": np.zeros(())}
    return {name: value + 1 for name, value in state.items()}


def test_everything_wrong_is_in_one_message_and_nothing_is_changed(net):
    before = net.state_dict()
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(wrong_state(net))
    assert str(caught.value) == (
        "state does not fit Net: missing token, heads.b.0; unexpected extra, other; "
        "layers.0.weight is (3, 2), expected (2, 2); heads.a.factor is (), expected (1,)"
    )
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_not_strict_means_names_only(net):
    before, state = net.state_dict(), wrong_state(net)
    with pytest.raises(ValueError, match=r"^state does not fit Net: layers.0.weight is .*; heads.a.factor is [^;]*$"):
        net.load_state_dict(state, strict=False)
    del state["layers.0.weight"], state["heads.a.factor"]
    net.load_state_dict(state, strict=False)
    loaded = {name for name, value in net.state_dict().items() if (value == before[name] + 1).all()}
    kept = {name for name, value in net.state_dict().items() if (value == before[name]).all()}
    assert loaded == {"layers.0.bias", "layers.1.0.weight"}
    assert kept == set(NAMES) - loaded


# --- looking at it -------------------------------------------------------------------------------------------------


def test_repr_is_the_tree_with_shapes_and_counts():
    class Stack(Module):
        def __init__(self):
            self.first = [Linear(2, 2)]
            self.blocks = [Linear(2, 2), Linear(2, 2), Linear(2, 2, bias=False)]
            self.scale = Parameter(np.ones((1, 1000), np.float32))
            self.drop = Dropout(0.1)
            self.rest = Identity()

    assert repr(Stack()).splitlines() == [
        "Stack(): 1,022 parameters",
        "  first.0: Linear(): 6 parameters",
        "    weight: (2, 2)",
        "    bias: (2,)",
        "  blocks.0 … blocks.1: Linear(): 6 parameters",
        "    weight: (2, 2)",
        "    bias: (2,)",
        "  blocks.2: Linear(): 4 parameters",
        "    weight: (2, 2)",
        "  scale: (1, 1000)",
        "  drop: Dropout(p=0.1)",
        "  rest: Identity()",
    ]


# --- watching it run -----------------------------------------------------------------------------------------------


def names_seen(net, run):
    names = {id(module): name for name, module in reversed(list(net.named_modules()))}
    seen = []
    with observe(lambda module, inputs, output: seen.append(names[id(module)])):
        run()
    return seen


def test_observers_see_every_module_after_it_ran(net):
    x = Tensor(np.ones((1, 2), np.float32))
    assert names_seen(net, lambda: net(x)) == ["layers.0", "layers.0", "layers.1.0", "layers.1.1", "heads.a", ""]


def test_observers_get_inputs_and_output(net):
    x, seen = Tensor(np.ones((1, 2), np.float32)), {}
    with observe(lambda module, inputs, output: seen.update({module: (inputs, output)})):
        y = net(x)
    assert seen[net] == ((x,), y)
    (given_to_scale,), out = seen[net.heads["a"]]
    np.testing.assert_array_equal(out.data, given_to_scale.data * net.heads["a"].factor.data)


def test_observers_nest():
    layer, x, seen = Identity(), Tensor([1.0]), []
    with observe(lambda *_: seen.append("outer")):
        layer(x)
        with observe(lambda *_: seen.append("inner")):
            layer(x)
        layer(x)
    layer(x)
    assert seen == ["outer", "outer", "inner", "outer"]


@pytest.mark.parametrize("where", ["callback", "block"])
def test_an_observer_leaves_after_an_exception(where):
    layer, x, seen = Identity(), Tensor([1.0]), []

    def callback(*_):
        seen.append("called")
        if where == "callback":
            raise KeyError

    with pytest.raises(KeyError), observe(callback):
        layer(x)
        raise KeyError
    layer(x)
    assert seen == ["called"]


def test_an_observer_sees_its_own_thread_only():
    layer, x, seen = Identity(), Tensor([1.0]), []

    def work(name):
        with observe(lambda *_: seen.append(name)):
            barrier.wait(timeout=10)
            layer(x)
            barrier.wait(timeout=10)

    barrier = threading.Barrier(3)
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    barrier.wait(timeout=10)
    layer(x)
    barrier.wait(timeout=10)
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["a", "b"]


def test_options_pass_through_a_call():
    class Power(Module):
        def forward(self, x, exponent=1):
            return ops.power(x, exponent)

    assert Power()(Tensor([3.0]), exponent=2).item() == 9
