"""What a Vision Transformer says where its arguments, or its images, do not fit."""

import numpy as np
import pytest

from tests.models.test_vit import small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "map"}, r"global_pool must be one of \('token', 'avg', .*, 'cls', 'gap'\), got 'map'"),
        ({"class_token": False}, 'global_pool "token" reads the class token, but class_token is False'),
        ({"pos_embed": "sincos"}, "pos_embed must be one of learn, none, sincos_1d, .*, rope_mixed, got 'sincos'"),
        ({"embed_layer": "cnn"}, "embed_layer must be one of patch, spt, got 'cnn'"),
        ({"attn_layer": "linear"}, "attn_layer must be one of softmax, rela, lsa, got 'linear'"),
        ({"num_heads": [2]}, r"num_heads as a list needs a number for each of the 2 blocks, and head_dim: got \[2\]"),
        ({"num_heads": [2, 2]}, r"needs .*, and head_dim: got \[2, 2\] and head_dim=None"),
        ({"num_heads": 5}, "num_heads 5 must divide dim 12"),
        ({"patch_size": 5}, r"patch_size \(5, 5\) must divide img_size \(8, 12\)"),
        ({"act": "swish"}, "act must be one of gelu, gelu_tanh, relu, got 'swish'"),
        ({"drop_path_rate": 1.0}, r"the probability of DropPath must lie in \[0, 1\), got 1.0"),
        ({"drop_rate": -0.1}, r"the probability of Dropout must lie in \[0, 1\), got -0.1"),
    ],
)
def test_arguments_that_do_not_go_together_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 12), (2, 1, 12, 8), (1, 8, 12)])
def test_images_of_another_shape_get_a_sentence(shape):
    with pytest.raises(ValueError, match=r"images must have shape \(B, 1, 8, 12\), got \("):
        small()(np.zeros(shape))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_another_type_get_a_sentence(dtype):
    with pytest.raises(TypeError, match=f"images are {np.dtype(dtype)}, the weights float64: normalise them"):
        small()(np.zeros((2, 1, 8, 12), dtype))
