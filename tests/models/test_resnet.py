"""The residual networks: sizes, shapes, gradients, where they start, and the same training however the batch is cut."""

import copy

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from minivit import Tensor, gradcheck, ops
from minivit.data import Batch
from minivit.models.resnet import CONFIGURATIONS, ResNet, ZeroPadding
from minivit.nn import BatchNorm2d
from minivit.objective import Classification
from minivit.optim import SGD
from minivit.random import generator, sampling
from minivit.training import Layout, train_step
from tests.nn.test_gradients import randomise
from tests.strategies import arrays, flags, generators, sizes
from tests.test_on_twin import check_module
from tests.training.short_run import distance


def small(block="basic", stem="3x3", shortcut="A", layers=(1, 1), channels=(2, 3), **options):
    options = {"img_size": 6, "in_chans": 2, "num_classes": 3, "drop_path_rate": 0.3} | options
    return ResNet(block, layers, channels, stem, shortcut, **options)


@st.composite
def networks(draw, **options):
    """A small network in float64, and images for it."""
    model = small(
        draw(st.sampled_from(["basic", "bottleneck"])), shortcut=draw(st.sampled_from("AB")),
        layers=draw(st.sampled_from([(1, 1), (2, 1)])), **options,
    )  # fmt: skip
    for _, module in model.named_modules():
        if isinstance(module, BatchNorm2d):
            module.eps = 0.1
    return randomise(model, draw(generators)), draw(arrays((draw(st.integers(2, 3)), 2, 5, 6)))


# --- sizes and shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet8", 75_290), ("resnet20", 269_722), ("resnet32", 464_154), ("resnet44", 658_586),
        ("resnet56", 853_018), ("resnet110", 1_727_962), ("resnet18", 11_689_512), ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_published(name, count):
    model = ResNet(**CONFIGURATIONS[name], weight_init="skip")
    assert model.num_parameters() == count


def test_every_named_network_has_a_count():
    assert len(CONFIGURATIONS) == 9


@given(sizes, sizes, st.sampled_from(["3x3", "7x7"]), st.sampled_from("AB"), st.integers(1, 13), st.integers(1, 13))
def test_any_size_of_image(batch, channels, stem, shortcut, rows, columns):
    """Each halving rounds up."""
    model = small(stem=stem, shortcut=shortcut, in_chans=channels).eval()
    images = np.zeros((batch, channels, rows, columns), np.float32)
    factor = 8 if stem == "7x7" else 2
    assert model.forward_features(images).shape == (batch, 3, -(-rows // factor), -(-columns // factor))
    assert model(images).shape == (batch, 3)


def test_parts_of_the_network():
    model = small("bottleneck", num_classes=0, drop_rate=0.5).eval()
    images = generator(0, "images").standard_normal((2, 2, 6, 6), np.float32)
    features = model.forward_features(images)
    assert features.shape == (2, 12, 3, 3) and model.num_features == 12
    np.testing.assert_allclose(model(images).data, features.data.mean((2, 3)), rtol=1e-5)
    assert (features.data >= 0).all()


@given(arrays((2, 3, 5, 4)), st.integers(3, 6), st.integers(1, 3))
def test_zero_padding_is_its_formula(x, channels, stride):
    y = ZeroPadding(channels, stride)(Tensor(x)).data
    before = (channels - 3) // 2
    np.testing.assert_array_equal(y[:, before : before + 3], x[:, :, ::stride, ::stride])
    assert y.shape[1] == channels and not y[:, :before].any() and not y[:, before + 3 :].any()


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"block": "wide"}, "block must be one of basic, bottleneck, got 'wide'"),
        ({"stem": "5x5"}, "stem must be one of 3x3, 7x7, got '5x5'"),
        ({"shortcut": "C"}, "shortcut must be one of A, B, got 'C'"),
        ({"weight_init": "timm"}, "weight_init must be one of kaiming, skip, got 'timm'"),
        ({"layers": (1, 1, 1)}, r"a number for each stage, got \(1, 1, 1\) and \(2, 3\)"),
        ({"layers": (1, 0)}, r"got \(1, 0\) and"),
        ({"layers": (), "channels": ()}, r"got \(\) and \(\)"),
    ],
)
def test_arguments_that_do_not_go_together(options, needed):
    with pytest.raises(ValueError, match=needed):
        small(**options)


# --- gradients -----------------------------------------------------------------------------------------------------


def distance_from_corners(run, x):
    """How near relu comes to 0, where it has no derivative."""
    relu, distances = ops.relu, [np.inf]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "relu", lambda x: distances.append(abs(x.data).min()) or relu(x))
        run(Tensor(x))
    return min(distances)


def check_gradients(model, images):
    """The worst relative error; draws near a corner are passed over, as in ``tests/nn/test_gradients.py``."""

    def run(x):
        with sampling(seed=0, step=0, samples=np.arange(len(x))):
            return model(x)

    if distance_from_corners(run, images) < 1e-4:
        reject()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return gradcheck(run, images, parameters=trained, eps=1e-5)


@settings(max_examples=8)
@given(networks(), flags, flags)
def test_gradients(model_and_images, training, checkpointing):
    model, images = model_and_images
    model.train(training).set_grad_checkpointing(checkpointing)
    assert check_gradients(model, images) <= 1e-7


@settings(max_examples=10)
@given(networks() | networks(stem="7x7"), flags, flags)
@pytest.mark.usefixtures("gpu")
def test_on_the_twin(model_and_images, training, checkpointing):
    model, images = model_and_images
    model.train(training).set_grad_checkpointing(checkpointing)
    check_module(model, images)


# --- training ------------------------------------------------------------------------------------------------------


def train(layout, recompute=False, steps=3):
    """Parameters and estimates after steps on 7, 5 and 3 images."""
    model = small("bottleneck", "7x7", "B", channels=(4, 4), drop_rate=0.2)
    model.set_grad_checkpointing(recompute)
    optimizer, losses = SGD(model.named_parameters(), lr=0.1, momentum=0.9), []
    with layout:
        for step in range(steps):
            rng, size = generator(step, "batch"), 7 - 2 * step
            images = rng.standard_normal((size, 2, 9, 9), np.float32)
            batch = Batch(images, rng.integers(0, 3, size), rng.permutation(100)[:size])
            losses.append(train_step(model, Classification(), batch, optimizer, 0, step, layout).loss)
    return model.state_dict() | {"losses": np.array(losses)}


@pytest.mark.parametrize(("workers", "recompute"), [(2, False), (3, True), (4, False), (1, True)])
def test_the_cut_of_a_batch_does_not_change_the_training(workers, recompute):
    assert distance(train(Layout(workers), recompute), train(Layout())) < 1e-4


def test_it_learns():
    """Bright rows or bright columns, in a few steps."""
    rng = generator(0, "stripes")
    labels = rng.integers(0, 2, 32)
    images = np.repeat(rng.standard_normal((32, 1, 8, 1), np.float32), 8, axis=3)
    images[labels == 1] = images[labels == 1].swapaxes(2, 3)
    model = small(channels=(4, 8), in_chans=1, num_classes=2, drop_path_rate=0.0)
    optimizer = SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    batch = Batch(images, labels, np.arange(32))
    results = [train_step(model, Classification(), batch, optimizer, 0, step) for step in range(30)]
    assert results[0].correct < 28 and results[-1].correct == 32
    assert (model.eval()(images).data.argmax(1) == labels).mean() > 0.9


# --- initial weights -----------------------------------------------------------------------------------------------


def test_initial_weights():
    model = ResNet(**CONFIGURATIONS["resnet20"], seed=1)
    for name, p in model.named_parameters():
        if p.ndim == 4:
            outputs = p.shape[0] * 9
            assert p.data.std() == pytest.approx(np.sqrt(2 / outputs), rel=6 / np.sqrt(p.size)), name
        elif "bn" in name:
            assert (p.data == name.endswith(("weight", "running_var"))).all(), name
        else:
            assert 0.05 < abs(p.data).max() <= 1 / 8, name
    other = ResNet(**CONFIGURATIONS["resnet32"], seed=1)
    for name in ("conv1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias"):  # drawn by name
        np.testing.assert_array_equal(model.state_dict()[name], other.state_dict()[name])
    another = ResNet(**CONFIGURATIONS["resnet20"], seed=2).state_dict()
    changed = {name for name, array in model.state_dict().items() if not np.array_equal(array, another[name])}
    assert changed == {name for name, p in model.named_parameters() if p.ndim == 4 or name.startswith("fc")}


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_blocks_start_as_their_shortcuts(block):
    images = generator(0, "images").standard_normal((2, 2, 6, 6), np.float32)
    model = small(block, channels=(4, 4), zero_init_last=True)
    skipped = copy.deepcopy(model)
    for stage in (skipped.layer1, skipped.layer2):
        for part in stage:
            part.drop_path = lambda residual: 0.0
    np.testing.assert_array_equal(model(images).data, skipped(images).data)


def test_drop_path_grows_with_depth():
    model = small(layers=(2, 3), drop_path_rate=0.4)
    rates = [block.drop_path.p for stage in (model.layer1, model.layer2) for block in stage]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])
