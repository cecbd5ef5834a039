"""SimMIM: its gradients, what it may see, what its loss counts, and what becomes of its encoder."""

import copy

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from minivit import Tensor
from minivit.data import Batch
from minivit.models import VisionTransformer
from minivit.models.mae import encoder_state
from minivit.models.simmim import CONFIGURATIONS, SimMIM
from minivit.objective import Reconstruction
from minivit.optim import SGD
from minivit.random import sampling
from minivit.training import Layout, train_step
from tests.devices import cupy, moved, no_waiting
from tests.models.test_mae import Loss, close, maskings, pixels_of
from tests.nn.test_gradients import EPS, check_gradients, randomise
from tests.strategies import arrays, flags, generators, sizes


@st.composite
def networks(draw, **fixed):
    """A small network with drawn options, its weights in float64, images for it, (B, C, H, W), and a masking."""
    grid = draw(st.tuples(sizes, sizes).filter(lambda grid: grid != (1, 1)))
    patch, heads = draw(st.tuples(*[st.integers(1, 2)] * 2)), draw(st.integers(1, 2))
    options = dict(
        img_size=(grid[0] * patch[0], grid[1] * patch[1]), patch_size=patch, in_chans=draw(st.integers(1, 3)),
        embed_dim=8 * heads, depth=draw(st.integers(0, 1)), num_heads=heads, mlp_ratio=0.5, norm_eps=EPS,
        class_token=draw(flags), reg_tokens=draw(st.integers(0, 2)), pre_norm=draw(flags), weight_init="skip",
        pos_embed=draw(st.sampled_from(["learn", "sincos_mae", "rel_bias", "rope_axial", "none"])),
        drop_path_rate=draw(st.sampled_from([0.0, 0.4])), pos_drop_rate=draw(st.sampled_from([0.0, 0.4])),
    )  # fmt: skip
    model = randomise(SimMIM(**options | fixed), draw(generators))
    images = draw(arrays((draw(st.integers(1, 3)), options["in_chans"], *options["img_size"])))
    return model, images, draw(maskings(len(images), model.patch_embed.num_patches))


def small(**options):
    """A network of two blocks for images (1, 8, 12) in 2 × 3 patches."""
    options = dict(img_size=(8, 12), patch_size=4, in_chans=1, embed_dim=12, depth=2, num_heads=3) | options
    return randomise(SimMIM(**options, norm_eps=EPS, weight_init="skip"), np.random.default_rng(0))


@settings(max_examples=15)  # the rest of the network is that of test_vit.py
@given(networks(), flags)
def test_gradients_through_images_and_every_parameter(drawn, training):
    model, x, masking = drawn
    with sampling(0, 0, np.arange(len(x))):
        _, pred, _ = model.train(training)(x, **masking)
    if abs(pred.data - model.patchify(x)).min() < 1e-3:  # |·| has a corner at 0
        reject()
    assert check_gradients(Loss(model, x, **masking), x) <= 1e-7


@given(networks(), flags)
def test_masked_pixels_are_not_seen_and_a_mask_token_stands_for_them(drawn, training):
    model, x, masking = drawn
    whole, draws = encoder(model.train(training)), (0, 0, np.arange(len(x)))
    with sampling(*draws):
        _, pred, mask = model(x, **masking)
    with sampling(*draws):
        other = model(np.where(pixels_of(model, mask), 7.0, x), **masking)
    np.testing.assert_array_equal(other[1].data, pred.data)
    tokens = np.where(mask[:, :, None] == 1, model.mask_token.data, model.patch_embed(x).data)
    whole.patch_embed.forward = lambda images: Tensor(tokens)
    with sampling(*draws):
        z = whole.forward_features(x)
    close(model.decoder_pred(z[:, model.num_prefix_tokens :]).data, pred.data)


def encoder(model):
    """A ``VisionTransformer`` that shares its parts with the model."""
    whole = copy.copy(model)
    whole.__class__ = VisionTransformer
    whole.patch_embed = copy.copy(model.patch_embed)
    return whole


@given(networks())
def test_the_loss_is_the_mean_distance_of_masked_pixels(drawn):
    model, x, masking = drawn
    loss, pred, mask = model.eval()(x, **masking)
    distance = abs(pred.data - model.patchify(x))
    np.testing.assert_allclose(loss.item(), distance[mask == 1].mean(), rtol=1e-12)
    anything = np.where(mask[:, :, None] == 0, 1e3, pred.data)
    assert model.forward_loss(x, Tensor(anything), mask).item() == loss.item()
    np.testing.assert_array_equal(model.unpatchify(model.patchify(x)), x)


@settings(max_examples=10)
@given(st.sampled_from([(1, 2), (2, 1), (3, 2)]), flags)
def test_any_cut_gives_the_same_training_step(cut, recompute):
    x = np.random.default_rng(1).standard_normal((7, 1, 8, 12))
    data, results = Batch(x, np.zeros(7, int), 10 + np.arange(7)), []
    for layout in (Layout(), Layout(*cut)):
        model = small(drop_path_rate=0.3)
        model.set_grad_checkpointing(recompute)
        optimizer = SGD(model.named_parameters(), lr=0.1)
        with layout:
            train_step(model, Reconstruction(mask_ratio=0.5), data, optimizer, 0, 3, layout)
        results.append(model.state_dict())
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("pos_embed", ["learn", "rel_bias"])
def test_a_vision_transformer_takes_the_encoders_weights(pos_embed):
    pretrained = small(pos_embed=pos_embed)
    sizes = dict(img_size=(8, 12), patch_size=4, in_chans=1, embed_dim=12, depth=2, num_heads=3, norm_eps=EPS)
    model = VisionTransformer(**sizes, num_classes=0, pos_embed=pos_embed).astype(np.float64)
    model.load_state_dict(encoder_state(pretrained))
    x = np.random.default_rng(1).standard_normal((2, 1, 8, 12))
    close(model.forward_features(x).data, pretrained.forward_features(x).data)
    left_out = set(pretrained.state_dict()) - set(model.state_dict())
    assert left_out == {"mask_token", "decoder_pred.weight", "decoder_pred.bias"}
    state = encoder_state(small(pre_norm=True), norm=False)
    assert "norm_pre.weight" in state and "norm.weight" not in state


@pytest.mark.parametrize("preset", ["timm", "book"])
def test_initial_weights(preset):
    model = SimMIM(16, 4, embed_dim=64, depth=1, num_heads=4, reg_tokens=40, weight_init=preset)
    classifier = VisionTransformer(16, 4, embed_dim=64, depth=1, num_heads=4, reg_tokens=40, weight_init=preset)
    for name, value in encoder_state(model).items():
        np.testing.assert_array_equal(value, classifier.state_dict()[name])
    assert model.mask_token.data.std() == pytest.approx(0.02, rel=0.4)
    assert model.decoder_pred.weight.data.std() == pytest.approx(0.02 if preset == "timm" else 1 / 8 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if "vit_base" not in name])
def test_named_networks_run(name):
    model = SimMIM(**CONFIGURATIONS[name])
    loss, pred, _ = model(np.ones((2, model.patch_embed.in_chans, *model.patch_embed.img_size), np.float32))
    assert np.isfinite(loss.item()) and pred.shape[1] == model.patch_embed.num_patches
    assert (loss.dtype, pred.dtype) == (np.float32, np.float32)


@pytest.mark.usefixtures("gpu")
@settings(max_examples=10)
@given(networks(), flags)
def test_on_a_gpu_it_computes_the_same_and_waits_for_nothing(drawn, training):
    model, x, masking = drawn
    model.train(training)
    results = []
    for there, array in ((copy.deepcopy(model).to("cuda"), moved), (model, np.asarray)):
        data, samples = array(x), array(np.arange(len(x)))
        with no_waiting(), sampling(0, 0, samples):
            loss, pred, mask = there(data, masking["mask_ratio"])
            loss.backward()
        results.append([loss.data, pred.data, mask, *(p.grad for p in there.parameters() if p.grad is not None)])
    for got, expected in zip(*results):
        assert isinstance(got, cupy().ndarray) and got.dtype == expected.dtype
        np.testing.assert_allclose(got.get(), expected, rtol=1e-9, atol=1e-11)
