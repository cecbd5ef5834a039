import numpy as np
import pytest

from minivit import Tensor
from minivit.models import VisionTransformer, create_model
from minivit.nn import Linear, Module, summary


@pytest.fixture(scope="module")
def tiny():
    model = create_model("vit_tiny_patch16_224", weight_init="skip")
    return model, summary(model, Tensor(np.zeros((1, 3, 224, 224), np.float32)))


def flops_of_a_vit(tokens, patches, patch_inputs, width, hidden, depth, classes):
    """Twice the multiplications of all matrix products, for one image."""
    projections = tokens * width * (3 * width + width)  # qkv and proj
    attention = 2 * tokens * tokens * width  # q kᵀ and A v
    mlp = 2 * tokens * width * hidden
    return 2 * (patches * patch_inputs * width + depth * (projections + attention + mlp) + width * classes)


def test_flops_of_vit_tiny_are_the_closed_formula(tiny):
    _, layers = tiny
    expected = flops_of_a_vit(197, 196, 3 * 16 * 16, 192, 4 * 192, 12, 1000)
    assert layers[0].flops == expected
    assert 2.4e9 < expected < 2.6e9  # papers say 1.3 G, counting a multiply-add once and leaving attention products out


def test_every_layer_has_its_share(tiny):
    model, layers = tiny
    by_name = {layer.name: layer for layer in layers}
    unused = ("q_norm", "k_norm", "attn_drop")  # fused attention goes past them
    assert list(by_name) == [name for name, _ in model.named_modules() if not name.endswith(unused)]
    assert by_name["head"].flops == 2 * 192 * 1000
    assert by_name["patch_embed"].flops == by_name["patch_embed.proj"].flops == 2 * 196 * 768 * 192
    assert by_name["blocks.3.attn"].flops == 2 * 197 * (4 * 192 * 192 + 2 * 197 * 192)
    assert by_name["blocks.3.mlp.fc1"].flops == 2 * 197 * 192 * 768
    blocks = sum(by_name[f"blocks.{i}"].flops for i in range(12))
    assert by_name[""].flops == by_name["patch_embed"].flops + blocks + by_name["head"].flops
    assert by_name["blocks.1"].flops == by_name["blocks.11"].flops == blocks // 12  # blocks.1 is not part of blocks.11


def test_shapes_kinds_and_parameter_counts(tiny):
    model, layers = tiny
    by_name = {layer.name: layer for layer in layers}
    assert (by_name[""].kind, by_name[""].shape) == ("VisionTransformer", (1, 1000))
    assert by_name[""].parameters == model.num_parameters() == 5_717_416
    assert by_name["blocks.0.attn.qkv"].shape == (1, 197, 576)
    assert by_name["blocks.0.attn.qkv"].parameters == 192 * 576 + 576
    assert by_name["norm"].kind == "LayerNorm"


def test_flops_grow_with_the_batch():
    model = VisionTransformer(8, 4, 1, 2, embed_dim=8, depth=1, num_heads=2)
    one, three = (summary(model, np.zeros((n, 1, 8, 8), np.float32))[0].flops for n in (1, 3))
    assert three == 3 * one == 3 * flops_of_a_vit(5, 4, 16, 8, 32, 1, 2)


def test_a_layer_that_runs_twice_counts_twice():
    class Twice(Module):
        def __init__(self):
            self.fc = Linear(2, 2)

        def forward(self, x):
            return self.fc(self.fc(x))

    layers = summary(Twice(), Tensor([[1.0, 2.0]]))
    assert [(layer.name, layer.flops, layer.parameters) for layer in layers] == [("", 16, 6), ("fc", 16, 6)]


def test_counting_records_nothing():
    layer = Linear(2, 2)
    summary(layer, Tensor([[1.0, 2.0]], requires_grad=True))
    assert layer.weight.grad is None


def test_the_table_shows_it_all():
    table = str(summary(VisionTransformer(8, 4, 1, 2, embed_dim=8, depth=1, num_heads=2), np.zeros((1, 1, 8, 8), "f")))
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["layer", "type", "output", "parameters", "MFLOP"]
    assert lines[1].split() == ["(model)", "VisionTransformer", "(1,", "2)", "1,090", "0.01"]
