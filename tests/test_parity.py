"""minivit against timm, transformers, the book's network and PyTorch: equal outputs, gradients, steps, initial weights.

The references' numbers are in ``tests/golden``; see ``cases.py`` there. PyTorch is not needed here.
"""

import numpy as np
import pytest

from minivit import Parameter, Tensor, ops, optim
from minivit.models import VisionTransformer, create_model
from minivit.nn import Module
from tests.golden import cases, position_cases, report, resnet_cases, variant_cases

LOGITS = {np.float32: 1e-5, np.float64: 1e-10}
GRADIENTS = {np.float32: 1e-5, np.float64: 1e-10}
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def test_there_is_a_golden_file_for_every_case():
    others = {"ops", "optimizers", "initialization", "positions", "variants", "distillation", "resnets"}
    masked = {"mae", "mae_initialization"}
    assert {path.stem for path in cases.FOLDER.glob("*.npz")} == {*cases.MODELS, *others, *masked}


# --- networks ------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("name", cases.MODELS)
def test_logits_loss_and_every_gradient_are_the_references(name, dtype):
    assert_close(report.compare(name, report.run(name, report.build(name), dtype)), dtype)


@dtypes
@pytest.mark.parametrize("name", ["timm_plain", "timm_registers", "transformers_no_bias"])
def test_attention_in_small_ops_has_the_references_gradients_too(name, dtype):
    model = report.build(name)
    for block in model.blocks:
        block.attn.fused_attn = False
    assert_close(report.compare(name, report.run(name, model, dtype)), dtype)


def assert_close(difference: report.Differences, dtype: type):
    assert difference.logits <= LOGITS[dtype]
    assert difference.logits_float32 <= LOGITS[np.float32]
    assert difference.loss <= LOGITS[dtype]
    assert difference.gradients <= GRADIENTS[dtype], difference.worst


@pytest.mark.parametrize("change", [{"norm_eps": 1e-5}, {"act": "gelu_tanh"}, {"num_heads": 2}])
def test_the_comparison_sees_a_small_change_of_the_network(change):
    changed = report.build("timm_plain", **change)
    difference = report.compare("timm_plain", report.run("timm_plain", changed, np.float64))
    assert difference.logits > 1e-6
    assert difference.gradients > 1e-6


def test_the_comparison_sees_a_wrong_gradient():
    results = report.run("timm_plain", report.build("timm_plain"), np.float64)
    results["blocks.1.attn.qkv.weight.grad"][40, 7] += 1e-6
    difference = report.compare("timm_plain", results)
    assert difference.gradients > 1e-8
    assert difference.worst == "blocks.1.attn.qkv.weight"


def test_the_comparison_sees_a_missing_gradient():
    results = report.run("timm_plain", report.build("timm_plain"), np.float64)
    del results["cls_token.grad"]
    with pytest.raises(KeyError, match="cls_token"):
        report.compare("timm_plain", results)


def test_the_books_network_has_its_size():
    model = create_model("vit_book", weight_init="skip")
    assert model.num_parameters() == 12_715_402
    images = Tensor(np.zeros((2, 3, 32, 32), np.float32))
    assert model.forward_features(images).shape == (2, 5, 384)
    assert model(images).shape == (2, 10)


# --- ops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.OPS)
def test_ops_are_pytorchs(name):
    case, stored = cases.OPS[name], cases.load("ops")
    arguments = [Tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in cases.op_inputs(name)]
    y = getattr(ops, case.op)(*arguments, **case.options)
    y.backward(cases.cotangent(name, y.shape))
    np.testing.assert_allclose(y.numpy(), stored[name], rtol=1e-12, atol=1e-14)
    for i, x in enumerate(arguments):
        if isinstance(x, Tensor):
            np.testing.assert_allclose(x.grad, stored[f"{name}.grad{i}"], rtol=1e-12, atol=1e-13)


# --- positions -----------------------------------------------------------------------------------------------------


def test_position_embeddings_are_the_references():
    """Exactly as far as the reference computed: what it computed in float32 is stored in float32."""
    tolerance = {"float32": 1e-6, "float64": 1e-13, "int64": 0.0}
    stored = cases.load("positions")
    for name, difference in position_cases.differences().items():
        assert difference <= tolerance[stored[name].dtype.name], name


# --- attention variants --------------------------------------------------------------------------------------------


def test_attention_variants_and_shifted_patches_are_the_references():
    """Outputs, and the gradients of the input and of every parameter."""
    differences = variant_cases.differences()
    assert {"lsa.attn.temperature.grad", "spt.proj.weight.grad", "rela.norm.gate.grad"} <= differences.keys()
    assert max(differences.values()) <= 1e-12, max(differences, key=differences.get)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lsa", lambda layer: layer.attn.temperature.data.__iadd__(1e-6)),
        ("spt", lambda layer: setattr(layer, "directions", "diagonal")),
        ("spt", lambda layer: setattr(layer.norm, "eps", 1e-6)),
        ("rela", lambda layer: setattr(layer.norm, "eps", 1e-5)),
    ],
)
def test_the_comparison_sees_a_small_change_of_a_layer(name, change, monkeypatch):
    layers = variant_cases.layers()
    change(layers[name][0])
    monkeypatch.setattr(variant_cases, "layers", lambda: layers)
    differences = variant_cases.differences()
    assert differences[name] > 1e-8
    assert all(d < 1e-12 for other, d in differences.items() if other.split(".")[0] != name)


# --- residual networks ---------------------------------------------------------------------------------------------


def test_residual_networks_are_torchvisions():
    """Logits in both modes, gradients, and running estimates after two steps."""
    differences = resnet_cases.differences()
    assert max(differences.values()) <= 1e-11, max(differences, key=differences.get)
    for block in resnet_cases.BLOCKS:
        names = {"evaluation", "logits", "layer2.0.downsample.1.running_var", "fc.bias.grad", "bn1.num_batches_tracked"}
        assert {f"{block}.{name}" for name in names} <= differences.keys()


@pytest.mark.parametrize(
    ("change", "seen", "unseen"),
    [
        (lambda model: setattr(model.layer3[0].bn1, "eps", 1.1e-5), "logits", "bn1.running_mean"),
        (lambda model: setattr(model.bn1, "momentum", 0.11), "bn1.running_var", "logits"),
        (lambda model: model.layer2[0].downsample[1].running_mean.data.__iadd__(1e-5), "evaluation", "fc.weight.grad"),
        (lambda model: setattr(model, "stem", "3x3"), "evaluation", None),
    ],
)
def test_the_comparison_sees_a_small_change_of_a_residual_network(change, seen, unseen):
    model, stored = resnet_cases.build("basic"), cases.load("resnets")
    change(model)
    made = resnet_cases.results("basic", model)
    assert abs(made[f"basic.{seen}"] - stored[f"basic.{seen}"]).max() > 1e-8
    if unseen:
        assert abs(made[f"basic.{unseen}"] - stored[f"basic.{unseen}"]).max() < 1e-12


# --- optimizers ----------------------------------------------------------------------------------------------------


class Problem:
    """Named parameters to optimise, with the values that the reference started from."""

    def __init__(self, dtype: type):
        start = cases.weights("optimizers", cases.PROBLEM)
        self.parameters = {name: Parameter(value.astype(dtype)) for name, value in start.items()}

    def named_parameters(self):
        return self.parameters.items()

    def values(self) -> np.ndarray:
        return np.concatenate([p.data.ravel() for p in self.parameters.values()])


@dtypes
@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_twenty_steps_of_an_optimizer_are_pytorchs(name, dtype):
    case, stored = cases.OPTIMIZERS[name], cases.load("optimizers")
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    problem = Problem(dtype)
    options = dict(case.options)
    groups = optim.weight_decay_groups(problem, options.pop("weight_decay", 0.0))
    optimizer = getattr(optim, case.optimizer)(groups, **options)
    ema = optim.EMA(optimizer, decay=cases.EMA_DECAY)
    for step in range(cases.STEPS):
        for parameter_name, p in problem.named_parameters():
            p.grad[...] = cases.step_gradient(step, parameter_name, p.data)
        if case.clip is not None:
            norm = optim.clip_grad_norm(optimizer, case.clip)
            assert norm == pytest.approx(stored[f"{name}.norms"][step], rel=tolerance)
        optimizer.step()
        ema.update()
        np.testing.assert_allclose(problem.values(), stored[name][step], rtol=tolerance, atol=tolerance)
        with ema.applied():
            np.testing.assert_allclose(problem.values(), stored[f"{name}.ema"][step], rtol=tolerance, atol=tolerance)


def test_clipping_was_needed_in_some_steps_only():
    norms, limit = cases.load("optimizers")["adamw_clip.norms"], cases.OPTIMIZERS["adamw_clip"].clip
    assert norms.min() < limit < norms.max()


def test_the_schedule_is_timms():
    rates = [optim.warmup_cosine(step, **cases.SCHEDULE) for step in range(cases.STEPS + 1)]
    np.testing.assert_allclose(rates, cases.load("optimizers")["schedule"], rtol=1e-12)


# --- initial weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", cases.INIT_PRESETS)
def test_initial_weights_have_the_references_distribution(preset):
    model = VisionTransformer(**cases.init_config(preset), weight_init=preset)
    assert unlike(model, preset) == []


@pytest.mark.parametrize(
    ("preset", "other", "parameter"),
    [
        ("jax", "moco", "head.weight"),
        ("moco", "jax", "blocks.0.attn.qkv.weight"),
        ("timm", "jax", "patch_embed.proj.weight"),
    ],
)
def test_the_statistics_tell_presets_apart(preset, other, parameter):
    model = VisionTransformer(**cases.init_config(preset), weight_init=preset)
    assert parameter in unlike(model, other)


def unlike(model: Module, preset: str, file: str = "initialization") -> list[str]:
    """Parameters whose mean, standard deviation or kurtosis is off by five times the scatter of two such samples."""
    stored = {k.partition("/")[2]: v for k, v in cases.load(file).items() if k.startswith(f"{preset}/")}
    own = {name: cases.statistics(parameter.data) for name, parameter in model.named_parameters()}
    assert own.keys() == stored.keys()
    sizes = {name: parameter.size for name, parameter in model.named_parameters()}
    return [name for name in own if not _alike(own[name], stored[name], sizes[name])]


def _alike(own: np.ndarray, stored: np.ndarray, size: int) -> bool:
    scatter = stored[1] * np.sqrt(2 / size) + 1e-6  # some start at 0 here, and at 1e-6 there
    return (
        abs(own[0] - stored[0]) <= 5 * scatter
        and abs(own[1] - stored[1]) <= 5 * scatter
        and (size < 1000 or abs(own[2] - stored[2]) <= 5 * np.sqrt(48 / size))
    )
