"""The five presets: what each kind of parameter is drawn from, and that every parameter has a stream of its own."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.models import VisionTransformer
from minivit.nn import LayerNorm, Linear, PatchEmbed, init, sincos_2d
from minivit.nn.init import PRESETS

D, K, P = 48, 60, 4  # width, classes, patch size
HIDDEN = 4 * D
each_preset = pytest.mark.parametrize("preset", PRESETS)
seeds = st.integers(0, 2**32 - 1)


def network(preset, **options):
    options = dict(img_size=16, patch_size=P, num_classes=K, embed_dim=D, depth=2, num_heads=4, reg_tokens=3) | options
    return VisionTransformer(**options, weight_init=preset)


def values(preset, **options):
    return {name: p.data for name, p in network(preset, **options).named_parameters()}


# --- what the distributions of the table look like: functions of a sample ------------------------------------------


def zero(x):
    assert not x.any()


def normal(std):
    def check(x):
        assert abs(x.std() / std - 1) < 6 * (2 * x.size) ** -0.5
        assert abs(x.mean()) < 6 * std * x.size**-0.5
        if x.size > 1000:
            assert abs((abs(x) < std).mean() - 0.6827) < 6 * (0.25 / x.size) ** 0.5
            assert abs(x).max() > 2.5 * std

    return check


def uniform(bound):
    def check(x):
        assert abs(x).max() <= bound
        assert abs(x).max() > bound * (1 - 20 / x.size)
        assert abs(x.std() / (bound / 3**0.5) - 1) < 3 * x.size**-0.5
        assert abs(x.mean()) < 4 * bound * x.size**-0.5

    return check


def cut_normal(std, sigmas):
    """Of this standard deviation after it is cut at so many of the standard deviations before."""
    before = std / 0.8796256610342398

    def check(x):
        assert abs(x.std() / std - 1) < 6 * (2 * x.size) ** -0.5
        assert 0.95 * sigmas * before < abs(x).max() <= sigmas * before * (1 + 1e-6)

    return check


def like_pytorch(fan_in):
    return uniform(1 / math.sqrt(fan_in))


def xavier(fan_in, fan_out):
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def fixed(table):
    return lambda x: np.testing.assert_array_equal(x, table)


PATCH = 3 * P * P
FAN_IN = {"attn.qkv": D, "attn.proj": D, "mlp.fc1": D, "mlp.fc2": HIDDEN}
FAN_OUT = {"attn.qkv": 3 * D, "attn.proj": D, "mlp.fc1": HIDDEN, "mlp.fc2": D}


def linears(weight, bias):
    """The expectations of a block's four Linears; ``weight`` and ``bias`` make one from (fan_in, fan_out)."""
    made = {}
    for layer in FAN_IN:
        made[f"{layer}.weight"] = weight(FAN_IN[layer], FAN_OUT[layer])
        made[f"{layer}.bias"] = bias(FAN_IN[layer], FAN_OUT[layer])
    return made


def always(check):
    return lambda fan_in, fan_out: check


CONVOLUTION = {"patch_embed.proj.weight": like_pytorch(PATCH), "patch_embed.proj.bias": like_pytorch(PATCH)}
XAVIER, FROM_FAN_IN = xavier, lambda fan_in, fan_out: like_pytorch(fan_in)
EXPECTED = {
    "timm": CONVOLUTION
    | linears(always(normal(0.02)), always(zero))
    | {"tokens": normal(1e-6), "pos_embed": normal(0.02), "head.weight": normal(0.02), "head.bias": zero},
    "jax": {"patch_embed.proj.weight": cut_normal(PATCH**-0.5, 2), "patch_embed.proj.bias": zero}
    | linears(XAVIER, always(zero))
    | {"mlp.fc1.bias": normal(1e-6), "mlp.fc2.bias": normal(1e-6)}
    | {"tokens": zero, "pos_embed": normal(0.02), "head.weight": zero, "head.bias": zero},
    "moco": CONVOLUTION
    | linears(XAVIER, always(zero))
    | {"attn.qkv.weight": xavier(D, D)}
    | {"tokens": normal(1e-6), "pos_embed": normal(0.02), "head.weight": xavier(D, K), "head.bias": zero},
    "mae": {"patch_embed.proj.weight": xavier(PATCH, D), "patch_embed.proj.bias": like_pytorch(PATCH)}
    | linears(XAVIER, always(zero))
    | {"tokens": normal(0.02), "pos_embed": fixed(sincos_2d(D, (4, 4), 4))}
    | {"head.weight": xavier(D, K), "head.bias": zero},
    "book": CONVOLUTION
    | linears(FROM_FAN_IN, FROM_FAN_IN)
    | {"tokens": normal(1), "pos_embed": normal(1), "head.weight": like_pytorch(D), "head.bias": like_pytorch(D)},
}


def expectation(preset, name):
    """What the table says of a parameter: norms start at 1 and 0 everywhere, all blocks alike."""
    if "norm" in name:
        return fixed(1) if name.endswith("weight") else zero
    if name in ("cls_token", "reg_token"):
        return EXPECTED[preset]["tokens"]
    return EXPECTED[preset][name.split(".", 2)[2] if name.startswith("blocks.") else name]


@each_preset
def test_every_parameter_has_the_distribution_of_the_table(preset):
    for name, x in values(preset).items():
        assert x.dtype == np.float32
        try:
            expectation(preset, name)(x)
        except AssertionError as error:
            raise AssertionError(f"{name} of {preset} starts wrong") from error


@pytest.mark.parametrize(
    ("preset", "other", "name"),
    [
        ("timm", "moco", "blocks.0.attn.qkv.weight"),
        ("moco", "jax", "blocks.0.attn.qkv.weight"),
        ("jax", "moco", "blocks.0.mlp.fc1.bias"),
        ("mae", "timm", "patch_embed.proj.weight"),
        ("jax", "timm", "patch_embed.proj.weight"),
        ("book", "timm", "cls_token"),
        ("mae", "moco", "cls_token"),
        ("jax", "mae", "pos_embed"),
    ],
)
def test_the_table_tells_presets_apart(preset, other, name):
    with pytest.raises(AssertionError):
        expectation(other, name)(values(preset)[name])


@each_preset
def test_layer_scale_keeps_its_init_values(preset):
    assert (values(preset, init_values=0.25)["blocks.1.ls2.gamma"] == 0.25).all()


def test_the_fixed_table_of_mae_leaves_out_tokens_without_positions():
    np.testing.assert_array_equal(values("mae", no_embed_class=True)["pos_embed"], sincos_2d(D, (4, 4), 0))


# --- streams -------------------------------------------------------------------------------------------------------


@each_preset
@settings(max_examples=15)
@given(seed=seeds)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(preset, seed):
    small = dict(img_size=8, embed_dim=8, num_classes=3, seed=seed, depth=1)
    first, again, other = values(preset, **small), values(preset, **small), values(preset, **small | {"seed": seed + 1})
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name])
        constant = expectation(preset, name) is zero or "norm" in name or (preset == "mae" and name == "pos_embed")
        assert (x == other[name]).all() == constant, name


CHANGES = {
    "depth": 3, "num_classes": 7, "reg_tokens": 0, "class_token": False, "qkv_bias": False, "qk_norm": True,
    "pre_norm": True, "init_values": 1.0, "img_size": 24, "drop_rate": 0.5,
}  # fmt: skip


@each_preset
@settings(max_examples=20)
@given(changed=st.sets(st.sampled_from(list(CHANGES))))
def test_a_parameter_does_not_depend_on_what_else_there_is(preset, changed):
    changes = {name: CHANGES[name] for name in changed}
    small = dict(img_size=8, embed_dim=8, num_classes=3, depth=2, global_pool="avg")
    first, second = values(preset, **small), values(preset, **small | changes)
    same = [name for name in first if name in second and first[name].shape == second[name].shape]
    assert len(same) >= 12
    for name in same:
        np.testing.assert_array_equal(first[name], second[name])


@each_preset
def test_parameters_of_one_network_differ_from_one_another(preset):
    drawn = {}
    for x in values(preset).values():
        if len(np.unique(x)) > 1:
            drawn.setdefault(x.shape, []).append(x)
    assert any(len(alike) > 1 for alike in drawn.values())
    for alike in drawn.values():
        assert not any((a == b).all() for i, a in enumerate(alike) for b in alike[:i])


# --- presets by name -----------------------------------------------------------------------------------------------


def test_skip_leaves_everything_as_it_is():
    model = network("skip")
    for name, p in model.named_parameters():
        assert (p.data == (1 if "norm" in name and name.endswith("weight") else 0)).all()
    before = network("timm")
    weights = before.state_dict()
    init.init_weights(before, "skip", seed=1)
    assert all((weights[name] == p.data).all() for name, p in before.named_parameters())


def test_weights_are_set_in_place_in_the_precision_that_they_have():
    model = network("skip").astype(np.float64)
    arrays = [p.data for p in model.parameters()]
    init.init_weights(model, "timm", seed=3)
    for p, array, (name, x) in zip(model.parameters(), arrays, values("timm", seed=3).items()):
        assert p.data is array and array.dtype == np.float64
        np.testing.assert_array_equal(array, x, name)


def test_an_unknown_preset_gets_the_list():
    with pytest.raises(ValueError, match="weight_init must be one of timm, jax, moco, mae, book or skip, got 'torch'"):
        network("torch")


def test_mae_refuses_a_width_that_has_no_table():
    with pytest.raises(ValueError, match="embed_dim must be a multiple of 4"):
        network("mae", embed_dim=6, num_heads=2)


# --- the distributions ---------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([0.02, 1e-6, 1.0, 3.0]))
def test_normal_has_its_standard_deviation(seed, std):
    normal(std)(init.normal((40, 60), np.random.default_rng(seed), std))


@given(seeds)
def test_trunc_normal_cuts_at_two_in_absolute_units(seed):
    normal(0.02)(init.trunc_normal((40, 60), np.random.default_rng(seed)))
    cut_normal(0.8796256610342398, 2)(init.trunc_normal((80, 80), np.random.default_rng(seed), std=1.0))
    uniform(2)(init.trunc_normal((40, 60), np.random.default_rng(seed), std=20.0))


@given(seeds)
def test_lecun_normal_has_variance_one_over_fan_in(seed):
    cut_normal(30**-0.5, 2)(init.lecun_normal((200, 5, 3, 2), np.random.default_rng(seed)))


@given(seeds)
def test_bounds_of_the_uniform_distributions(seed):
    def rng():
        return np.random.default_rng(seed)

    uniform(0.3)(init.uniform((40, 60), rng(), 0.3))
    like_pytorch(30)(init.fan_in_uniform((100, 5, 3, 2), rng()))
    like_pytorch(7)(init.fan_in_uniform((3000,), rng(), fan_in=7))
    xavier(60, 40)(init.xavier_uniform((40, 60), rng()))
    xavier(60, 10)(init.xavier_uniform((30, 60), rng(), matrices=3))


@pytest.mark.parametrize(
    "distribution",
    [init.normal, init.trunc_normal, init.lecun_normal, init.fan_in_uniform, init.xavier_uniform],
    ids=lambda distribution: distribution.__name__,
)
def test_distributions_take_their_numbers_from_the_generator_alone(distribution):
    first, again, other = (distribution((4, 5), np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 5) and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not (first == other).any()


# --- layers on their own -------------------------------------------------------------------------------------------


def test_layers_inside_deferred_start_at_zero_and_norms_at_one():
    with init.deferred():
        layers = [Linear(2, 3), PatchEmbed(4, 2, 1, 3), LayerNorm(3)]
        with init.deferred():
            pass
        layers.append(Linear(3, 2))
    weights = [p.data for layer in layers for p in layer.parameters()]
    assert [bool(x.any()) for x in weights] == [False, False, False, False, True, False, False, False]
    assert Linear(2, 3).weight.data.all()


def test_deferred_ends_after_an_exception_and_holds_in_its_thread_only():
    others = []
    with pytest.raises(KeyError), init.deferred():
        thread = threading.Thread(target=lambda: others.append(Linear(2, 3)))
        thread.start()
        thread.join()
        raise KeyError
    assert others[0].weight.data.all()
    assert Linear(2, 3).weight.data.all()
