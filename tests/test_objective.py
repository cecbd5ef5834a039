"""What can be trained for: the losses by hand, and that they may be cut."""

import dataclasses

import numpy as np
import pytest

from minivit import no_grad, ops
from minivit.diversity import HeadPenalties
from minivit.models import VisionTransformer, create_model
from minivit.nn import Module
from minivit.objective import Classification, Objective, Reconstruction
from minivit.random import generator, sampling
from tests.training.objectives import Masked, likeness

IMAGES = generator(0, "images").standard_normal((5, 1, 8, 8), np.float32)
LABELS = np.array([0, 2, 1, 1, 0])


def network():
    return VisionTransformer(8, 4, 1, 3, embed_dim=12, depth=2, num_heads=3, weight_init="book")


def test_classification_is_the_cross_entropy_of_the_models_answers():
    model = network()
    loss, logits = Classification(label_smoothing=0.2)(model, IMAGES, LABELS)
    np.testing.assert_array_equal(logits.data, model(IMAGES).data)
    assert loss.item() == ops.cross_entropy(model(IMAGES), LABELS, label_smoothing=0.2).item()
    soft, _ = Classification(label_smoothing=0.2)(model, IMAGES, np.eye(3, dtype=np.float32)[LABELS])
    assert soft.item() == pytest.approx(loss.item(), rel=1e-6)


def test_penalties_are_added_and_have_a_gradient():
    model, penalties = network(), HeadPenalties({"disagreement_output": 0.5, "margin": 2.0}, margin=-0.5)
    plain, _ = Classification()(model, IMAGES, LABELS)
    with penalties.reading(model) as read:
        model(IMAGES)
    loss, _ = Classification(penalties=penalties)(model, IMAGES, LABELS)
    assert read.total().item() > 0.1
    assert loss.item() == pytest.approx(plain.item() + read.total().item(), rel=1e-6)
    gradients = []
    for each in (plain, loss):
        model.zero_grad()
        each.backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad)
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-4


def test_reconstruction_asks_the_model_for_its_loss_and_has_no_answers():
    model, images = Masked(), IMAGES[:, :, :2, :2]
    with sampling(0, 0, np.arange(5)):
        loss, logits = Reconstruction(0.25)(model, images, LABELS)
    with sampling(0, 0, np.arange(5)):
        expected, _, hidden = model(images, 0.25)
    assert loss.item() == expected.item() and logits is None
    assert hidden.sum() == 5


@pytest.mark.parametrize("objective", [Classification(0.1), Reconstruction(0.5), likeness()], ids=repr)
def test_the_loss_of_a_batch_is_the_mean_of_its_pieces(objective):
    model = (Masked() if isinstance(objective, Reconstruction) else OnPixels()).eval()

    def loss(piece):
        with no_grad(), sampling(0, 3, np.arange(5)[piece]):
            return objective(model, IMAGES[piece, :, :2, :2], LABELS[piece])[0].item()

    pieces = 2 / 5 * loss(slice(0, 2)) + 3 / 5 * loss(slice(2, 5))
    assert loss(slice(0, 5)) == pytest.approx(pieces, rel=1e-6)


class OnPixels(Module):
    def forward(self, images):
        return ops.reshape(images, (len(images), 4))[:, :3] * 2.0


def test_what_tells_them_apart_is_in_their_repr():
    assert repr(Reconstruction()) == "Reconstruction(mask_ratio=0.75, mask_kind='random')"
    penalised = [Classification(penalties=HeadPenalties({"margin": 0.5}, margin=m)) for m in (0.0, 0.25)]
    assert len({repr(x) for x in [Classification(), Classification(0.1), *penalised]}) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        Reconstruction().mask_ratio = 0.5


def test_what_test_images_are_measured_by():
    assert Classification(0.1, HeadPenalties({"margin": 1.0})).evaluation == Classification()
    assert Reconstruction(0.3).evaluation == Reconstruction(0.3)
    assert likeness().evaluation == Classification()
    assert Classification().module is None and Reconstruction().module is None


def test_the_base_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match=r"Objective has no __call__\(\)"):
        Objective()(network(), IMAGES, LABELS)


def test_a_network_with_two_heads_gets_a_sentence_while_it_trains():
    model = create_model("deit_nano_distilled_patch7_28", img_size=14)
    images = np.zeros((2, 1, 14, 14), np.float32)
    with pytest.raises(TypeError, match=r"VisionTransformerDistilled gives two logits .* SoftDistillation"):
        Classification()(model, images, LABELS[:2])
    loss, logits = Classification()(model.eval(), images, LABELS[:2])
    assert np.isfinite(loss.item()) and logits.shape == (2, 10)
