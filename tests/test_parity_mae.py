"""The masked autoencoder against facebookresearch/mae and transformers: equal losses, predictions, masks, gradients.

The references' numbers are in ``tests/golden``; see ``mae_cases.py`` there. PyTorch is not needed here.
"""

import numpy as np
import pytest

from minivit import Tensor
from minivit.backend import reuse_freed_memory
from minivit.models.mae import CONFIGURATIONS, MaskedAutoencoderViT
from tests.golden import cases, mae_cases
from tests.test_parity import unlike


def test_losses_predictions_masks_and_every_gradient_are_the_references():
    differences = mae_cases.differences()
    assert max(differences.values()) <= 1e-12, max(differences, key=differences.get)
    assert all(difference == 0 for name, difference in differences.items() if name.endswith(".mask"))


def test_tables_of_positions_are_the_originals():
    differences = mae_cases.differences()
    assert [differences[name] for name in mae_cases.TABLES] == [0, 0]


@pytest.mark.parametrize("name", mae_cases.MODELS)
def test_the_stored_gradients_are_those_of_all_trained_parameters(name):
    model = MaskedAutoencoderViT(**mae_cases.MODELS[name])
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, _ in model.named_parameters()} - names == mae_cases.FIXED
    stored = {key for key in cases.load("mae") if key.startswith(f"{name}.") and key.endswith(".grad")}
    assert stored == {f"{name}.{n}.grad" for n in names}


def swap(model, name, first, second):
    """Exchange two entries of a parameter's second axis."""
    data = getattr(model, name).data
    data[:, [first, second]] = data[:, [second, first]]


CHANGES = {
    "norm_eps": lambda model: setattr(model.norm, "eps", 1e-5),
    "norm_pix_loss": lambda model: setattr(model, "norm_pix_loss", not model.norm_pix_loss),
    "encoder positions": lambda model: swap(model, "pos_embed", 0, 1),
    "decoder positions": lambda model: swap(model, "decoder_pos_embed", 3, 4),
    "heads": lambda model: setattr(model.decoder_blocks[0].attn, "num_heads", 4),
    "mask token": lambda model: model.mask_token.data[0, 0].__setitem__(0, 0.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["facebookresearch_norm_pix", "transformers"])
def test_the_comparison_sees_a_small_change_of_the_network(name, change):
    model, stored = mae_cases.build(name), cases.load("mae")
    CHANGES[change](model)
    loss = mae_cases.run(name, model)[f"{name}.loss"]
    assert abs(loss - stored[f"{name}.loss"]) > 1e-9


def test_the_original_rounding_was_needed_in_these_cases():
    name = "facebookresearch"
    model = mae_cases.build(name)
    _, _, mask = model(Tensor(mae_cases.images(name)), mae_cases.RATIO, noise=mae_cases.noise(name))
    assert mask.sum() != cases.load("mae")[f"{name}.mask"].sum()


def test_initial_weights_have_the_originals_distribution():
    assert unlike(MaskedAutoencoderViT(**mae_cases.INIT), "mae", "mae_initialization") == []
    other = MaskedAutoencoderViT(**mae_cases.INIT, weight_init="moco")
    assert {"decoder_blocks.0.attn.qkv.weight", "patch_embed.proj.weight"} <= set(
        unlike(other, "mae", "mae_initialization")
    )


@pytest.mark.parametrize("name", mae_cases.NAMED)
def test_named_networks_have_the_originals_size(name):
    reuse_freed_memory(False)  # else zeros are written, 2.5 GB of them
    model = MaskedAutoencoderViT(**CONFIGURATIONS[name], weight_init="skip")
    assert model.num_parameters() == cases.load("mae_initialization")[f"parameters/{name}"]


def test_parameters_are_named_as_the_originals_are():
    stored = [key.partition("/")[2] for key in cases.load("mae_initialization") if key.startswith("mae/")]
    assert list(MaskedAutoencoderViT(**mae_cases.INIT).state_dict()) == stored
    assert all(value.dtype == np.float32 for value in MaskedAutoencoderViT(**mae_cases.INIT).state_dict().values())
