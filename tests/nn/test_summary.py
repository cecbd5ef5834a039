import numpy as np
import pytest

from minivit import Tensor
from minivit.models import VisionTransformer, create_model
from minivit.nn import Linear, Module, summary


@pytest.fixture(scope="module")
def tiny():
    model = create_model("vit_tiny_patch16_224", weight_init="skip")
    return model, summary(model, Tensor(np.zeros((1, 3, 224, 224), np.float32)))


def flops_of_a_block(tokens, kept, width, hidden):
    """Twice the multiplications of all matrix products, for one image."""
    projections = 2 * tokens * width * width + 2 * kept * width * width  # k and v; q and proj
    attention = 2 * kept * tokens * width  # q kᵀ and A v
    mlp = 2 * kept * width * hidden
    return 2 * (projections + attention + mlp)


def flops_of_a_vit(tokens, patches, patch_inputs, width, hidden, depth, classes, read):
    """Of the last block, those for the tokens that the head reads."""
    blocks = (depth - 1) * flops_of_a_block(tokens, tokens, width, hidden)
    ends = 2 * (patches * patch_inputs * width + width * classes)
    return blocks + flops_of_a_block(tokens, read, width, hidden) + ends


def test_flops_of_vit_tiny_are_the_closed_formula(tiny):
    _, layers = tiny
    expected = flops_of_a_vit(197, 196, 3 * 16 * 16, 192, 4 * 192, 12, 1000, read=1)
    assert layers[0].flops == expected
    whole = flops_of_a_vit(197, 196, 3 * 16 * 16, 192, 4 * 192, 12, 1000, read=197)
    assert 2.4e9 < whole < 2.6e9  # papers say 1.3 G, counting a multiply-add once and leaving attention products out
    assert 0.92 < expected / whole < 0.94


@pytest.mark.parametrize(("pool", "read"), [("token", 1), ("avg", 5), ("", 5)])
@pytest.mark.parametrize("attn_drop_rate", [0.0, 0.1])
def test_flops_are_those_of_the_tokens_that_the_head_reads(pool, read, attn_drop_rate):
    options = dict(embed_dim=8, depth=3, num_heads=2, global_pool=pool, attn_drop_rate=attn_drop_rate)
    model = VisionTransformer(8, 4, 1, 0, **options)
    x = np.zeros((1, 1, 8, 8), np.float32)
    assert summary(model.eval(), x)[0].flops == flops_of_a_vit(5, 4, 16, 8, 32, 3, 0, read)
    if attn_drop_rate and pool == "token":  # the last block's attention is then computed for all tokens
        layers = {layer.name: layer.flops for layer in summary(model.train(), x)}
        assert layers["blocks.2.attn"] == layers["blocks.1.attn"]
        assert layers["blocks.2.mlp"] == layers["blocks.1.mlp"] // 5


def test_every_layer_has_its_share(tiny):
    model, layers = tiny
    by_name = {layer.name: layer for layer in layers}
    unused = ["attn_drop", "q_norm", "k_norm"]  # fused attention goes past them
    passed = {f"blocks.{i}.attn.{part}" for i in range(11) for part in unused} | {"blocks.11.attn.attn_drop"}
    assert list(by_name) == [name for name, _ in model.named_modules() if name not in passed]
    assert by_name["head"].flops == 2 * 192 * 1000
    assert by_name["patch_embed"].flops == by_name["patch_embed.proj"].flops == 2 * 196 * 768 * 192
    assert by_name["blocks.3.attn"].flops == 2 * 197 * (4 * 192 * 192 + 2 * 197 * 192)
    assert by_name["blocks.3.mlp.fc1"].flops == 2 * 197 * 192 * 768
    assert by_name["blocks.11.mlp.fc1"].flops == 2 * 192 * 768
    blocks = sum(by_name[f"blocks.{i}"].flops for i in range(12))
    assert by_name[""].flops == by_name["patch_embed"].flops + blocks + by_name["head"].flops
    assert by_name["blocks.1"].flops == by_name["blocks.10"].flops == flops_of_a_block(197, 197, 192, 768)
    assert by_name["blocks.11"].flops == flops_of_a_block(197, 1, 192, 768)


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
    assert three == 3 * one == 3 * flops_of_a_vit(5, 4, 16, 8, 32, 1, 2, read=1)


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
    assert lines[1].split() == ["(model)", "VisionTransformer", "(1,", "2)", "1,090", "0.00"]
