"""Pictures of what a masked autoencoder paints: each pixel comes from where it should."""

import numpy as np
import pytest

from minivit.analysis.reconstruction import reconstruct
from minivit.backend import to_device
from minivit.models.simmim import SimMIM
from tests.models.test_mae import images, pixels_of, small


def reconstructed(model, x, **options):
    _, pred, mask = model(x, 0.5)
    return pred.data, pixels_of(model, mask), reconstruct(model, x, pred, mask, **options)


@pytest.mark.parametrize("denormalise", [True, False])
def test_without_norm_pix_a_prediction_is_the_picture(denormalise):
    model, x = small(), images()
    pred, hidden, pictures = reconstructed(model, x, denormalise=denormalise)
    np.testing.assert_array_equal(pictures.reconstruction, model.unpatchify(pred))
    np.testing.assert_array_equal(pictures.pasted, np.where(hidden, model.unpatchify(pred), x))
    np.testing.assert_array_equal(pictures.masked, np.where(hidden, 0, x))


def test_with_norm_pix_there_are_two_pictures():
    model, x = small(norm_pix_loss=True), 3 + 2 * images()
    pred, hidden, raw = reconstructed(model, x, denormalise=False)
    np.testing.assert_array_equal(raw.reconstruction, model.unpatchify(pred))
    _, pred, mask = model(x, mask=raw_mask(model, hidden))
    pictures = reconstruct(model, x, pred, mask)
    patches = model.patchify(x)
    expected = pred.data * np.sqrt(patches.var(2, ddof=1, keepdims=True) + 1e-6) + patches.mean(2, keepdims=True)
    np.testing.assert_allclose(model.patchify(pictures.reconstruction), expected, rtol=1e-12)
    np.testing.assert_array_equal(pictures.pasted[~hidden], x[~hidden])
    np.testing.assert_array_equal(pictures.pasted[hidden], pictures.reconstruction[hidden])


def raw_mask(model, hidden):
    return model.patchify(hidden).all(axis=2)


def test_a_perfect_prediction_gives_the_image_back():
    for model in (small(norm_pix_loss=True), small()):
        x = images()
        _, pred, mask = model(x, 0.5)
        pred.data = model.target(x)
        pictures = reconstruct(model, x, pred, mask)
        np.testing.assert_allclose(pictures.reconstruction, x, rtol=1e-10)
        np.testing.assert_allclose(pictures.pasted, x, rtol=1e-10)


def test_masked_pixels_get_the_fill_and_types_stay():
    model, x = small().astype(np.float32), images().astype(np.float32)
    _, hidden, pictures = reconstructed(model, x, fill=0.5)
    assert (pictures.masked[hidden] == 0.5).all() and hidden.any()
    np.testing.assert_array_equal(pictures.masked[~hidden], x[~hidden])
    assert {picture.dtype for picture in pictures} == {np.dtype(np.float32)}


def test_simmim_has_pictures_too():
    model, x = SimMIM((8, 12), 4, 1, embed_dim=12, depth=1, num_heads=3).astype(np.float64), images()
    pred, hidden, pictures = reconstructed(model, x)
    np.testing.assert_array_equal(pictures.pasted, np.where(hidden, model.unpatchify(pred), x))


def test_pictures_of_a_model_on_a_gpu_are_on_the_host(gpu):
    model, x = small(norm_pix_loss=True).to("cuda"), images()
    there = to_device(x, "cuda")
    _, pred, mask = model(there, 0.5)
    pictures = reconstruct(model, there, pred, mask)
    hidden = pixels_of(model, mask.get())
    assert all(isinstance(picture, np.ndarray) for picture in pictures)
    np.testing.assert_array_equal(pictures.masked, np.where(hidden, 0, x))
