"""Gradients of attention weights by finite differences, relevance against its definition, and that nothing is left."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import no_grad
from minivit.analysis import attention_maps, relevance
from minivit.analysis.relevance import attention_gradients, propagate
from minivit.models.mae import MaskedAutoencoderViT
from minivit.models.resnet import ResNet
from minivit.nn import Module
from minivit.nn.heads import composed_attention
from tests.cupy_twin import wrap
from tests.models import test_deit
from tests.models.test_vit import close, images, networks, small
from tests.strategies import flags, generators, sizes

NETWORKS = {
    "softmax": small,
    "rela": lambda: small(attn_layer="rela"),
    "lsa": lambda: small(attn_layer="lsa"),
    "Shaw": lambda: small(pos_embed="rel_shaw"),
    "rotary": lambda: small(pos_embed="rope_axial", embed_dim=24),
    "registers": lambda: small(reg_tokens=2),
    "mean": lambda: small(class_token=False, global_pool="avg"),
    "class token unread": lambda: small(global_pool="avg", reg_tokens=1),
    "maximum": lambda: small(class_token=False, global_pool="max"),
    "distilled": lambda: test_deit.small(reg_tokens=1),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


class Bump(Module):
    """Adds numbers to the attention weights that it is given."""

    def __init__(self, change):
        self.change = change

    def forward(self, weights):
        return weights + self.change


def logits(model, x, changes):
    """With attention weights changed in every layer."""
    changed = copy.deepcopy(model).eval()
    for block, change in zip(changed.blocks, changes):
        block.attn.attn_drop = Bump(change)
    with composed_attention(changed), no_grad():
        return changed(x).data


@every_network
def test_gradients_of_a_logit_are_central_differences(network):
    model, x, classes, rng, eps = NETWORKS[network](), images(3), np.array([4, 0, 2]), np.random.default_rng(2), 1e-5
    maps, gradients = attention_gradients(model, x, classes)
    assert len(maps) == len(gradients) == 2
    for layer in range(2):
        for _ in range(3):
            step = [np.zeros_like(a) for a in maps]
            step[layer] = rng.standard_normal(maps[layer].shape)
            ends = [logits(model, x, [sign * eps * s for s in step])[np.arange(3), classes] for sign in (1, -1)]
            expected = (gradients[layer] * step[layer]).sum((1, 2, 3))
            assert (abs(expected) > 1e-7).all()
            np.testing.assert_allclose((ends[0] - ends[1]) / (2 * eps), expected, rtol=1e-5, atol=1e-9)


@every_network
def test_maps_are_the_attention_maps(network):
    """Of the last layer, those rows that the head asks for."""
    model, x = NETWORKS[network](), images()
    rows = {"mean": 6, "maximum": 6, "class token unread": 8, "distilled": 2}.get(network, 1)
    maps, gradients = attention_gradients(model, x)
    assert [a.shape for a in maps] == [g.shape for g in gradients] and maps[-1].shape[2] == rows
    for a, expected in zip(maps, attention_maps(model, x)):
        close(a, expected[:, :, : a.shape[2]])


# --- from layer to layer ---------------------------------------------------------------------------------------------


def test_two_tokens_two_heads_and_two_layers_by_hand():
    """What speaks against the class, the negative products, is gone before the mean over heads."""
    first = [[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]]
    first_gradient = [[[2.0, -4.0], [0.0, 4.0]], [[1.0, 9.0], [4.0, -1.0]]]
    # A ⊙ ∇A is [[1, −2], [0, 3]] and [[1, 0], [2, −.5]], so Ā is [[1, 0], [1, 1.5]] and R = I + Ā
    second, second_gradient = [[[0.5, 0.5]], [[0.0, 1.0]]], [[[2.0, 4.0]], [[7.0, -1.0]]]  # of token 0 alone
    # [1, 2] and [0, −1], so Ā is [.5, 1] in its first row
    maps, gradients = ([np.array([x]) for x in pair] for pair in ((first, second), (first_gradient, second_gradient)))
    close(propagate(maps[:1], gradients[:1]), [[[2, 0], [1, 2.5]]])
    close(propagate(maps, gradients), [[[2 + 0.5 * 2 + 1 * 1, 2.5], [1, 2.5]]])


@given(generators, sizes, st.lists(sizes, min_size=1, max_size=3), st.integers(1, 4), st.data())
def test_it_is_the_sum_over_all_ways_from_token_to_token(rng, batch, heads, tokens, data):
    """R = (I + Ā_L) … (I + Ā_1), image by image; the last layer may have fewer rows."""
    maps, gradients = ([rng.standard_normal((batch, h, tokens, tokens)) for h in heads] for _ in range(2))
    rows = data.draw(st.integers(1, tokens))
    gradients[-1][:, :, rows:] = 0
    found = propagate([*maps[:-1], maps[-1][:, :, :rows]], [*gradients[:-1], gradients[-1][:, :, :rows]])
    for image in range(batch):
        expected = np.eye(tokens)
        for a, gradient in zip(reversed(maps), reversed(gradients)):
            relevant = np.zeros((tokens, tokens))
            for one, other in zip(a[image], gradient[image]):
                relevant += np.where(one * other > 0, one * other, 0) / a.shape[1]
            expected = expected @ (np.eye(tokens) + relevant)
        close(found[image], expected)


def test_nothing_is_relevant_without_a_gradient():
    np.testing.assert_array_equal(propagate([np.ones((2, 1, 3, 3))], [-np.ones((2, 1, 3, 3))]), [np.eye(3)] * 2)


# --- of a model ------------------------------------------------------------------------------------------------------


@every_network
def test_the_rows_that_the_head_reads_over_the_patches(network):
    model, x, classes = NETWORKS[network](), images(), [1, 0, 4, 4]
    total = propagate(*attention_gradients(model, x, classes))
    first, last = {
        "registers": (0, 1), "mean": (0, 6), "maximum": (0, 6), "class token unread": (2, 8), "distilled": (0, 2)
    }.get(network, (0, 1))  # fmt: skip
    prefix, found = total.shape[-1] - 6, relevance(model, x, classes)
    assert found.shape == (4, 2, 3) and (found >= 0).all() and found.std() > 0
    for row in range(2):
        for column in range(3):
            close(found[:, row, column], total[:, first:last, prefix + 3 * row + column].mean(1))


@every_network
def test_rows_that_the_head_does_not_read_would_change_nothing(network):
    """The whole last block, computed: the gradient of the other rows is zero."""
    model, x = NETWORKS[network](), images()
    expected, few = relevance(model, x), attention_gradients(model, x)[1][-1]
    model.forward = lambda images: model.forward_head(model.forward_features(images))
    all_rows = attention_gradients(model, x)[1][-1]
    assert all_rows.shape[2] == all_rows.shape[3]
    close(all_rows[:, :, : few.shape[2]], few)
    assert (all_rows[:, :, few.shape[2] :] == 0).all()
    close(relevance(model, x), expected)


@given(networks(num_classes=3, global_pool="avg"), flags, st.data())
@settings(max_examples=25)
def test_images_of_a_batch_are_not_mixed_and_each_has_its_class(drawn, training, data):
    model, x = drawn
    classes = data.draw(st.lists(st.integers(0, 2), min_size=len(x), max_size=len(x)))
    together = relevance(model.train(training), x, classes)
    for n, c in enumerate(classes):
        close(relevance(model, x[n : n + 1], c)[0], together[n])


@every_network
def test_the_class_is_the_models_answer_unless_given(network):
    model, x = NETWORKS[network](), images(8)
    with no_grad():
        y = model.eval()(x).data
    for name in ("head", "head_dist") if network == "distilled" else ("head",):
        getattr(model, name).bias.data -= y.mean(0)  # then no class is the answer for all images
    answers = (y - y.mean(0)).argmax(1)
    assert len(set(answers)) > 1
    found = relevance(model, x)
    close(found, relevance(model, x, answers))
    assert abs(found - relevance(model, x, (answers + 1) % 5)).max() > 1e-3
    close(relevance(model, x, 3), relevance(model, x, [3] * 8))


def test_a_logit_of_nothing_but_a_bias_leaves_no_patch_relevant():
    model, x = small(), images()
    model.head.weight.data[2] = 0
    assert (relevance(model, x, 2) == 0).all() and (relevance(model, x, 1) > 0).any()


def test_float32_stays_float32():
    assert relevance(small().astype(np.float32), images().astype(np.float32)).dtype == np.float32


def as_it_is(model):
    return [(module, {"training": module.training} | vars(module)) for _, module in model.named_modules()]


def test_looking_leaves_the_model_as_it_was():
    model, x = small(drop_rate=0.5, proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5), images()
    model.blocks[1].eval()
    model.blocks[0].attn.fused_attn = False
    model.head.weight.requires_grad = False
    model.norm.weight.grad = np.ones(12)
    before, wants, state = as_it_is(model), [p.requires_grad for p in model.parameters()], model.state_dict()
    found = relevance(model, x)
    with pytest.raises(ValueError, match="images must have shape"):
        relevance(model, np.zeros((1, 1, 4, 4)))
    with pytest.raises(ValueError, match="classes must be"):
        relevance(model, x, 5)
    assert as_it_is(model) == before
    assert [p.requires_grad for p in model.parameters()] == wants
    assert [p.grad is not None for p in model.parameters()] == [p is model.norm.weight for p in model.parameters()]
    assert (model.norm.weight.grad == 1).all()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
    np.testing.assert_array_equal(relevance(model.eval(), x), found)  # no dropout


def test_on_the_twin_of_a_gpu(cupy_twin):
    model, x, classes = small(), images(), np.array([1, 2, 3, 4])
    there = copy.deepcopy(model).to("cuda")
    for chosen, wrapped in ((None, None), (classes, wrap(classes)), (2, 2)):
        found = relevance(there, wrap(x), wrapped)
        assert type(found) is np.ndarray
        close(found, relevance(model, x, chosen))
    with pytest.raises(TypeError, match="the images are on cpu, the model is on cuda:0"):
        relevance(there, x)


@pytest.mark.parametrize("classes", [5, -1, [0, 1, 2], [0, 1, 2, 5], [0.0, 1.0, 2.0, 3.0], [[0, 1, 2, 3]], True])
def test_classes_that_are_not_there_get_a_sentence(classes):
    with pytest.raises(ValueError, match=r"classes must be one number or 4, one an image, in 0 … 4, got"):
        relevance(small(), images(), classes)


def test_models_without_attention_or_logits_get_a_sentence():
    x = np.zeros((1, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="ResNet has no attention layer"):
        relevance(ResNet("basic", (1,), (2,), stem="3x3"), x)
    with pytest.raises(ValueError, match=r"VisionTransformer must give logits \(B, K\) .* gave \(4, 7, 5\)"):
        relevance(small(global_pool=""), images())
    sizes = dict(embed_dim=8, depth=1, num_heads=2, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
    with pytest.raises(ValueError, match=r"MaskedAutoencoderViT must give logits .* gave a tuple"):
        relevance(MaskedAutoencoderViT(4, 2, **sizes), x)
