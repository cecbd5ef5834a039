"""The masked autoencoder: its gradients, what it may see, what its loss counts, and what becomes of its encoder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor, ops
from minivit.models import VisionTransformer
from minivit.models.mae import (
    CONFIGURATIONS,
    MaskedAutoencoderViT,
    encoder_state,
    patch_statistics,
    patchify,
    unpatchify,
)
from minivit.models.registry import VIT
from minivit.nn import Identity, Module, observe
from tests.nn.test_gradients import EPS, check_gradients, randomise
from tests.strategies import arrays, flags, generators, sizes


class Loss(Module):
    """A masked image model and the images to be reconstructed: from the images that it is shown to the loss.

    The two are the same images, except to a gradient check, since no gradient goes to what is to be reconstructed.
    """

    def __init__(self, model: Module, images: np.ndarray, **masking):
        self.model, self.images, self.masking = model, images, masking

    def forward(self, images: Tensor) -> Tensor:
        _, pred, mask = self.model(images, **self.masking)
        return self.model.forward_loss(self.images, pred, mask)


@st.composite
def maskings(draw, batch, patches):
    """A noise for so many images, and a ratio at which it masks some patches and leaves some."""
    noise = draw(generators).random((batch, patches))
    return dict(noise=noise, mask_ratio=draw(st.integers(1, patches - 1)) / patches)


@st.composite
def autoencoders(draw, **fixed):
    """A small network with drawn options, its weights in float64, images for it, (B, C, H, W), and a masking."""
    grid = draw(st.tuples(sizes, sizes).filter(lambda grid: grid != (1, 1)))
    patch = draw(st.tuples(*[st.integers(1, 3)] * 2))
    heads, decoder_heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    options = dict(
        img_size=(grid[0] * patch[0], grid[1] * patch[1]), patch_size=patch, in_chans=draw(st.integers(2, 3)),
        embed_dim=4 * heads, depth=draw(st.integers(0, 1)), num_heads=heads,
        decoder_embed_dim=4 * decoder_heads, decoder_depth=draw(st.integers(0, 1)), decoder_num_heads=decoder_heads,
        mlp_ratio=draw(st.sampled_from([0.5, 2.0])), norm_pix_loss=draw(flags), norm_eps=EPS,
        drop_path_rate=draw(st.sampled_from([0.0, 0.4])), weight_init="skip",
    )  # fmt: skip
    model = randomise(MaskedAutoencoderViT(**options | fixed), draw(generators))
    images = draw(arrays((draw(st.integers(1, 3)), options["in_chans"], *options["img_size"])))
    return model, images, draw(maskings(len(images), model.patch_embed.num_patches))


def small(seed=0, **options):
    """A network of two and one blocks for images (1, 8, 12) in 2 × 3 patches."""
    options = dict(
        img_size=(8, 12), patch_size=4, in_chans=1, embed_dim=12, depth=2, num_heads=3, decoder_embed_dim=8,
        decoder_depth=1, decoder_num_heads=2, norm_eps=EPS,
    ) | options  # fmt: skip
    return randomise(MaskedAutoencoderViT(**options, weight_init="skip"), np.random.default_rng(seed))


def images(batch=4, seed=1):
    """For ``small``."""
    return np.random.default_rng(seed).standard_normal((batch, 1, 8, 12))


def pixels_of(model, mask):
    """True where a pixel lies in a masked patch: (B, C, H, W)."""
    return model.unpatchify(np.broadcast_to(mask[:, :, None], (*mask.shape, model.decoder_pred.weight.shape[0]))) == 1


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


# --- gradients -----------------------------------------------------------------------------------------------------


@settings(max_examples=20)  # the blocks have tests of their own
@given(autoencoders(), flags)
def test_gradients_through_images_and_every_trained_parameter(drawn, training):
    model, x, masking = drawn
    assert check_gradients(Loss(model.train(training), x, **masking), x) <= 1e-7


@given(autoencoders(depth=1, decoder_depth=1))
def test_no_gradient_reaches_masked_pixels_and_the_fixed_tables(drawn):
    """Of masked pixels nothing is known but what they are compared with, which is no function of the network."""
    model, x, masking = drawn
    image = Tensor(x, requires_grad=True)
    loss, _, mask = model(image, **masking)
    loss.backward()
    hidden = pixels_of(model, mask)
    assert not image.grad[hidden].any() and image.grad[~hidden].any()
    untrained = {name for name, p in model.named_parameters() if p.grad is None}
    assert untrained == {"pos_embed", "decoder_pos_embed"}


@given(autoencoders())
def test_float32_stays_float32_in_all_results_and_gradients(drawn):
    model, x, masking = drawn
    loss, pred, mask = model.astype(np.float32)(x.astype(np.float32), **masking)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert {loss.dtype, pred.dtype, mask.dtype, *(gradient.dtype for gradient in gradients)} == {np.dtype(np.float32)}


# --- patches -------------------------------------------------------------------------------------------------------


@given(arrays((2, 3, 6, 8)), st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 4, 8]))
def test_the_order_of_pixels_in_a_patch_is_row_column_channel(x, p, q):
    patches = iter(patchify(x, (p, q)).transpose(1, 0, 2))
    for top in range(0, 6, p):
        for left in range(0, 8, q):
            window = x[:, :, top : top + p, left : left + q]
            np.testing.assert_array_equal(next(patches), window.transpose(0, 2, 3, 1).reshape(2, -1))
    assert next(patches, None) is None


@given(st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.data())
def test_unpatchify_is_the_inverse_of_patchify(grid, patch, data):
    x = data.draw(arrays((data.draw(sizes), data.draw(sizes), grid[0] * patch[0], grid[1] * patch[1])))
    patches = patchify(x, patch)
    assert patches.shape == (len(x), grid[0] * grid[1], patch[0] * patch[1] * x.shape[1])
    np.testing.assert_array_equal(unpatchify(patches, patch, grid), x)
    channel_first = ops.patchify.raw(x, patch)[0].reshape(*patches.shape[:2], x.shape[1], -1)
    np.testing.assert_array_equal(patches, channel_first.swapaxes(2, 3).reshape(patches.shape))


@pytest.mark.parametrize("shape", [(1, 5, 12), (1, 6, 13)])
def test_patches_of_another_shape_give_a_sentence(shape):
    with pytest.raises(ValueError, match=r"2 x 3 pixels on a grid of 2 x 3 have shape \(B, 6, 6 C\), got \(1, "):
        unpatchify(np.zeros(shape), (2, 3), (2, 3))


# --- the encoder ---------------------------------------------------------------------------------------------------


@given(autoencoders())
def test_the_encoder_sees_visible_patches_only(drawn):
    model, x, masking = drawn
    latent, mask, _ = model.forward_encoder(x, **masking)
    assert latent.shape[1] == 1 + (mask[0] == 0).sum()
    other = np.where(pixels_of(model, mask), np.nan, x)
    np.testing.assert_array_equal(model.forward_encoder(other, **masking)[0].data, latent.data)


@given(autoencoders(drop_path_rate=0.0))
def test_a_visible_token_is_its_patch_at_its_place_however_they_are_ordered(drawn):
    """The same visible patches in another order: the same prediction, and the same tokens in that order."""
    model, x, masking = drawn
    latent, mask, ids_restore = model.forward_encoder(x, **masking)
    keep = latent.shape[1] - 1
    turned = np.where(mask == 0, keep - 1 - ids_restore, ids_restore)  # the visible ones, last to first
    other, same_mask, _ = model.forward_encoder(x, noise=turned, mask_ratio=masking["mask_ratio"])
    np.testing.assert_array_equal(same_mask, mask)
    close(other.data[:, 1:], latent.data[:, :0:-1])
    close(model(x, **masking)[1].data, model(x, noise=turned, mask_ratio=masking["mask_ratio"])[1].data)


def test_the_table_of_positions_goes_with_the_patches():
    """Moving patches, their places and their noise together moves the predictions, and the loss stays."""
    model, x, order = small(), images(), np.array([3, 0, 5, 1, 4, 2])
    noise = np.random.default_rng(0).random((4, 6))
    loss, pred, mask = model(x, 0.5, noise=noise)
    for table in (model.pos_embed, model.decoder_pos_embed):
        table.data[:, 1:] = table.data[:, 1:][:, order]
    shuffled = model.unpatchify(model.patchify(x)[:, order])
    moved_loss, moved_pred, moved_mask = model(shuffled, 0.5, noise=noise[:, order])
    np.testing.assert_array_equal(moved_mask, mask[:, order])
    close(moved_pred.data, pred.data[:, order])
    close(moved_loss.data, loss.data)
    assert abs(model(x, 0.5, noise=noise)[0].item() - loss.item()) > 1e-6


def test_whole_images_are_encoded_as_if_nothing_were_masked():
    model, x = small(), images()
    tokens = model.patch_embed(x).data + model.pos_embed.data[:, 1:]
    np.testing.assert_array_equal(model.forward_features(x).data, model.encode(Tensor(tokens)).data)
    latent, _, ids_restore = model.forward_encoder(x, 1 / 6)
    assert (model.forward_features(x).shape, latent.shape) == ((4, 7, 12), (4, 6, 12))
    assert ids_restore.shape == (4, 6)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_drop_path_grows_linearly_in_the_encoder(depth):
    model = small(depth=depth, drop_path_rate=0.2)
    np.testing.assert_allclose([b.drop_path1.p for b in model.blocks], np.linspace(0, 0.2, depth), atol=1e-15)
    assert model.decoder_blocks[0].drop_path1.p == 0


# --- the decoder ---------------------------------------------------------------------------------------------------


@given(autoencoders(decoder_depth=0))
def test_the_decoder_puts_tokens_back_in_order_and_a_mask_token_in_each_gap(drawn):
    model, x, masking = drawn
    latent, mask, ids_restore = model.forward_encoder(x, **masking)
    model.decoder_norm, model.decoder_pred = Identity(), Identity()
    z = model.forward_decoder(latent, ids_restore).data - model.decoder_pos_embed.data[:, 1:]
    embedded = model.decoder_embed(latent).data
    for b, image in enumerate(mask):
        for n, hidden in enumerate(image):
            close(z[b, n], model.mask_token.data[0, 0] if hidden else embedded[b, 1 + ids_restore[b, n]])


def test_the_decoder_sees_the_class_token_and_all_places():
    model, seen = small(), []
    with observe(
        lambda module, inputs, output: seen.append(inputs[0].data) if module in model.decoder_blocks else None
    ):
        latent, _, ids_restore = model.forward_encoder(images(), 0.5)
        model.forward_decoder(latent, ids_restore)
    assert seen[0].shape == (4, 7, 8)
    close(seen[0][:, 0], model.decoder_embed(latent).data[:, 0] + model.decoder_pos_embed.data[0, 0])


# --- the loss ------------------------------------------------------------------------------------------------------


@given(autoencoders())
def test_the_loss_is_the_mean_square_over_masked_pixels(drawn):
    model, x, masking = drawn
    loss, pred, mask = model(x, **masking)
    target = model.patchify(x)
    if model.norm_pix_loss:
        target = (target - target.mean(2, keepdims=True)) / np.sqrt(target.var(2, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(loss.item(), ((pred.data - target) ** 2)[mask == 1].mean(), rtol=1e-12)
    np.testing.assert_allclose(model.target(Tensor(x)), target, rtol=1e-12, atol=1e-14)
    anything = np.where(mask[:, :, None] == 0, 1e3, pred.data)
    assert model.forward_loss(x, Tensor(anything), mask).item() == loss.item()


def test_normalised_targets_have_mean_0_and_variance_1_and_flat_patches_are_0():
    model, x = small(norm_pix_loss=True), 5 + 3 * images()
    x[0] = 7.0
    target = model.target(x)
    close(target.mean(2), 0 * target.mean(2))
    np.testing.assert_allclose(target[1:].var(2, ddof=1), 1, rtol=1e-5)
    assert not target[0].any()
    mean, std = patch_statistics(model.patchify(x))
    close(target * std + mean, model.patchify(x))


def test_patches_of_one_number_have_no_variance():
    options = dict(embed_dim=4, depth=1, num_heads=1, decoder_embed_dim=4, decoder_depth=1, decoder_num_heads=1)
    with pytest.raises(ValueError, match="norm_pix_loss needs patches of at least two numbers"):
        MaskedAutoencoderViT(4, 1, 1, norm_pix_loss=True, **options)
    MaskedAutoencoderViT(4, 1, 1, **options)


# --- names, and what becomes of the encoder ------------------------------------------------------------------------


@pytest.mark.parametrize("pos_embed", ["learn", "sincos_mae"])
def test_a_vision_transformer_with_the_encoders_weights_computes_the_same(pos_embed):
    pretrained, x = small(), images()
    sizes = dict(img_size=(8, 12), patch_size=4, in_chans=1, embed_dim=12, depth=2, num_heads=3, norm_eps=EPS)
    model = VisionTransformer(**sizes, num_classes=0, pos_embed=pos_embed).astype(np.float64)
    model.load_state_dict(encoder_state(pretrained))
    close(model.forward_features(x).data, pretrained.forward_features(x).data)


def test_the_encoders_state_is_taken_from_a_model_or_from_a_state():
    model = small()
    state = encoder_state(model)
    assert list(state) == [n for n in model.state_dict() if not n.startswith("decoder_") and n != "mask_token"]
    from_state = encoder_state(model.state_dict())
    assert list(from_state) == list(state) and all((from_state[n] == state[n]).all() for n in state)
    pooled = encoder_state(model, norm=False)
    assert set(state) - set(pooled) == {"norm.weight", "norm.bias"}
    sizes = dict(img_size=(8, 12), patch_size=4, in_chans=1, embed_dim=12, depth=2, num_heads=3, num_classes=5)
    classifier = VisionTransformer(**sizes, global_pool="avg").state_dict()
    assert set(classifier) - set(pooled) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert set(pooled) < set(classifier)


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if "mae_vit" not in name])
def test_small_networks_have_the_encoder_of_the_classifier_of_that_name(name):
    model, classifier = CONFIGURATIONS[name], VIT[name.replace("mae_", "vit_")]
    for argument in ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "in_chans", "mlp_ratio"):
        assert model.get(argument) == classifier.get(argument), argument
    network = MaskedAutoencoderViT(**model)
    loss, pred, _ = network(np.ones((2, network.patch_embed.in_chans, *network.patch_embed.img_size), np.float32))
    assert np.isfinite(loss.item()) and pred.shape[1] == network.patch_embed.num_patches
    decoder = sum(p.size for n, p in network.named_parameters() if n.startswith("decoder_blocks"))
    assert decoder < 0.25 * sum(p.size for n, p in network.named_parameters() if n.startswith("blocks"))
