"""The masked autoencoder in training: masks and steps that do not depend on the cut, recomputation, on a GPU too."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit.data import Batch
from minivit.models.mae import MaskedAutoencoderViT
from minivit.objective import Reconstruction
from minivit.optim import SGD, AdamW
from minivit.random import sampling
from minivit.training import Layout, train_step
from tests.devices import cupy, moved, no_waiting
from tests.models.test_grad_checkpointing import ops_of
from tests.models.test_mae import autoencoders, close, images, small
from tests.strategies import flags


@given(autoencoders(), st.sampled_from(["random", "block"]), st.integers(0, 99), st.integers(0, 3))
def test_a_batch_is_its_pieces_one_after_another(drawn, kind, first, cut):
    """Masks and drop-path belong to an image and a step: the cut makes no difference."""
    model, x, masking = drawn
    ratio, samples = masking["mask_ratio"], first + np.arange(len(x))

    def run(piece):
        with sampling(0, 5, samples[piece]):
            loss, pred, mask = model(x[piece], ratio, mask_kind=kind)
        return loss.item() * len(piece), pred.data, mask

    whole = run(np.arange(len(x)))
    pieces = [run(piece) for piece in np.split(np.arange(len(x)), [min(cut, len(x))]) if len(piece)]
    close(sum(loss for loss, _, _ in pieces), whole[0])
    for i in (1, 2):
        close(np.concatenate([piece[i] for piece in pieces]), whole[i])


def test_masks_are_drawn_in_evaluation_too_and_change_with_the_step():
    model, x, masks = small().eval(), images(), []
    for step in (0, 1, 0):
        with sampling(0, step, np.arange(4)):
            masks.append(model(x, 0.5)[2])
    assert (masks[0] != masks[1]).any() and (masks[0] == masks[2]).all()


def test_options_of_the_mask_are_passed_on():
    model, x = small(), images()
    np.testing.assert_array_equal(model(x, 0.5, mask_kind="grid")[2], [[0, 1, 0, 1, 0, 1]] * 4)
    assert model(x, 0.75, original_rounding=True)[2].sum() == 5 * 4
    assert model(x, 0.7)[2].sum() == 4 * 4 and model(x)[2].sum() == 4 * 4
    mask = np.array([[1, 0, 0, 0, 1, 1]] * 4)
    np.testing.assert_array_equal(model(x, mask=mask)[2], mask)


@given(autoencoders(), flags)
def test_recomputation_changes_no_bit(drawn, training):
    model, x, masking = drawn
    results = []
    for recompute in (False, True):
        model.train(training).set_grad_checkpointing(recompute)
        model.zero_grad()
        with sampling(0, 0, np.arange(len(x))):
            loss, pred, _ = model(x, **masking)
        loss.backward()
        results.append([loss.data, pred.data, *(p.grad for p in model.parameters() if p.requires_grad)])
        recomputed = ops_of(model(x, **masking)[0]).get("recompute", 0)
        assert recomputed == (len(model.blocks) + len(model.decoder_blocks)) * (recompute and training)
    for plain, again in zip(*results):
        np.testing.assert_array_equal(plain, again)


@settings(max_examples=10)
@given(st.sampled_from([(1, 2), (2, 1), (2, None), (3, 2)]), flags)
def test_any_cut_gives_the_same_training_step(cut, recompute):
    data = Batch(images(7), np.zeros(7, int), np.random.default_rng(0).permutation(100)[:7])
    results, start = [], small(drop_path_rate=0.3).state_dict()
    for layout in (Layout(), Layout(*cut)):
        model = small(drop_path_rate=0.3)
        model.set_grad_checkpointing(recompute)
        optimizer = SGD(model.named_parameters(), lr=0.1)
        with layout:
            seen = train_step(model, Reconstruction(mask_ratio=0.5), data, optimizer, 0, 3, layout)
        results.append((seen.loss, seen.grad_norm, model.state_dict()))
    (loss, norm, state), (other_loss, other_norm, other_state) = results
    np.testing.assert_allclose([other_loss, other_norm], [loss, norm], rtol=1e-12)
    for name in state:
        np.testing.assert_allclose(other_state[name], state[name], rtol=1e-10, atol=1e-13)
        assert (state[name] == start[name]).all() == ("pos_embed" in name), name


def test_it_learns_to_paint_what_it_does_not_see():
    """Each image is of one colour: a quarter of the patches tells the others."""
    colours = np.random.default_rng(0).standard_normal((32, 1, 1, 1), np.float32)
    x = np.broadcast_to(colours, (32, 1, 8, 8))
    sizes = dict(embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    model = MaskedAutoencoderViT(8, 2, 1, **sizes)
    optimizer = AdamW(model.named_parameters(), lr=5e-3, betas=(0.9, 0.95))
    batch, losses = Batch(x, np.zeros(32, int), np.arange(32)), []
    for step in range(60):
        losses.append(train_step(model, Reconstruction(), batch, optimizer, 0, step).loss)
    assert np.mean(losses[-5:]) < 0.1 < 0.4 < losses[0]


@pytest.mark.usefixtures("gpu")
@settings(max_examples=20)
@given(autoencoders(), st.sampled_from(["random", "block", "grid"]), flags, flags)
def test_on_a_gpu_it_computes_the_same_and_waits_for_nothing(drawn, kind, training, recompute):
    model, x, masking = drawn
    model.train(training).set_grad_checkpointing(recompute)
    results = []
    for there, array in ((copy.deepcopy(model).to("cuda"), moved), (model, np.asarray)):
        data, samples = array(x), array(np.arange(len(x)))
        with no_waiting(), sampling(0, 0, samples):
            loss, pred, mask = there(data, masking["mask_ratio"], mask_kind=kind)
            loss.backward()
        results.append([loss.data, pred.data, mask, *(p.grad for p in there.parameters() if p.requires_grad)])
    for got, expected in zip(*results):
        assert isinstance(got, cupy().ndarray) and got.dtype == expected.dtype
        np.testing.assert_allclose(got.get(), expected, rtol=1e-9, atol=1e-11)
