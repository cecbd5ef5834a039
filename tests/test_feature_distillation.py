"""Distillation from features: what is read from which layer, the loss, its gradients, and its projections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor, gradcheck
from minivit.data import Batch, Dataset, Loader
from minivit.distillation import POOLED, FeatureDistillation, StoredLogits, Teacher, reading
from minivit.nn import Identity, Linear, Module
from minivit.objective import Classification
from minivit.optim import SGD
from minivit.training import Layout, TrainConfig, evaluate, fit, load_checkpoint, train_step
from tests.nn.test_gradients import randomise
from tests.test_distillation import KINDS, Strict, close, data, network, students

LAYERS = [("blocks.0", "blocks.0"), ("blocks.0.attn", "norm"), ("patch_embed", POOLED), (POOLED, "blocks.0.mlp.fc1")]


def teacher(width=8, **options):
    return Teacher(network(seed=9, embed_dim=width, depth=1, **options))


def objective(student, own=None, layers=(*LAYERS,), **options):
    """With projections in float64, as the networks are."""
    made = FeatureDistillation(own or teacher(), student, data(1)[0], layers, **options)
    made._projections.astype(np.float64)
    return made


class Convolutional(Module):
    """Gives what a CNN gives, (B, C, H, W), and has its classifier under a CNN's name."""

    def __init__(self):
        self.layer = Identity()
        self.fc = Linear(2, 3)

    def forward(self, images):
        return self.fc(self.layer(Tensor(images)).mean(axis=(2, 3)))


# --- reading -------------------------------------------------------------------------------------------------------


@students
def test_features_are_outputs_averaged_over_tokens(kind):
    model, (images, _) = network(kind).eval(), data()
    with reading(model, ["patch_embed", "blocks.0", "norm", POOLED]) as read:
        model(images)
    tokens, prefix = model.patch_embed(images), len(model.prefix_tokens)
    close(read["patch_embed"].data, tokens.data.mean(1))
    tokens = model.blocks[0](model.embed_positions(tokens))
    close(read["blocks.0"].data, tokens.data.mean(1))
    normalised = model.norm(model.blocks[1](tokens)).data[:, :prefix]  # all that the last block computes
    close(read["norm"].data, normalised.mean(1))
    close(read[POOLED].data, normalised[:, -1])  # of two heads, what the teacher's is given


def test_features_of_maps_are_averaged_over_places():
    model, (images, _) = Convolutional(), data()
    with reading(model, ["layer", "", POOLED]) as read:
        logits = model(images)
    close(read["layer"].data, images.mean((2, 3)))
    close(read[POOLED].data, images.mean((2, 3)))
    close(read[""].data, logits.data)


def test_another_network_is_not_read():
    model, other = network(), network()
    with reading(model, ["head"]) as read:
        logits = model(data()[0])
        other(2 * data()[0])
    close(read["head"].data, logits.data)


def test_layers_that_cannot_be_read_get_a_sentence():
    model = network()
    with pytest.raises(ValueError, match=r"VisionTransformer has no layer 'block.0'; perhaps blocks.0"):
        objective(model, layers=[("block.0", "norm")])
    with pytest.raises(ValueError, match=r"has no layer 'zzz'; perhaps patch_embed, .*, head$"):
        objective(model, layers=[("norm", "zzz")])
    with pytest.raises(ValueError, match=r"VisionTransformer did not run its layer 'blocks.0.attn.attn_drop'"):
        objective(model, layers=[("blocks.0.attn.attn_drop", "norm")])
    with pytest.raises(ValueError, match=r"Linear has no layer 'pooled'"), reading(Linear(2, 2), [POOLED]):
        pass


# --- the loss ------------------------------------------------------------------------------------------------------


@students
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_that_of_its_formula(kind, soft):
    student, own, (images, labels) = network(kind), teacher(), data(soft=soft)
    made = objective(student, own, weight=0.7, label_smoothing=0.2)
    loss, logits = made(student, images, labels)
    student.eval()
    close(logits.data, student(images).data)
    truth = Classification(label_smoothing=0.2)(student, images, labels)[0].item()
    with (
        reading(student, [name for name, _ in LAYERS]) as read,
        reading(own.model, [name for _, name in LAYERS]) as seen,
    ):
        student(images)
        own.model(images)
    distances = []
    for (ours, theirs), project in zip(LAYERS, made.module.projections):
        f, g = read[ours].data, seen[theirs].data
        if isinstance(project, Linear):
            f = f @ project.weight.data.T + project.bias.data
        distances.append(((f - g) ** 2).mean())
    close(loss.item(), truth + 0.7 * np.mean(distances))


@given(kind=st.sampled_from(KINDS), training=st.booleans(), width=st.sampled_from([6, 8]))
@settings(max_examples=5)
def test_gradients_of_the_whole_loss_through_every_parameter(kind, training, width):
    student, (images, labels) = network(kind).train(training), data(3)
    made = objective(student, teacher(width))
    parameters = dict(student.named_parameters()) | dict(made.module.named_parameters())

    def loss(images):
        return made(_As(student, images), data(3)[0], labels)[0]

    assert gradcheck(loss, images, parameters=parameters, eps=1e-5) <= 1e-7


class _As(Module):
    """The student under its own names, given other images than the teacher: these are differentiated."""

    def __init__(self, student, images):
        vars(self).update(vars(student))
        self.forward = lambda _: student(images)


def test_a_perfect_imitation_costs_nothing_and_learns_nothing():
    student, (images, labels) = network(), data()
    made = objective(student, Teacher(network()), [("blocks.0", "blocks.0"), (POOLED, POOLED)], weight=5.0)
    assert made.module is None
    loss, _ = made(student, images, labels)
    loss.backward()
    gradients = [p.grad for p in student.parameters()]
    student.zero_grad()
    plain, _ = Classification()(student, images, labels)
    plain.backward()
    close(loss.item(), plain.item())
    for got, p in zip(gradients, student.parameters()):
        close(got, p.grad)


def test_by_default_it_is_the_classifiers_that_are_given_alike_features():
    student = network()
    made = FeatureDistillation(teacher(), student, data(1)[0])
    assert made.layers == (("pooled", "pooled"),) and made.module.projections[0].weight.shape == (8, 6)


def test_a_convolutional_teacher():
    student, (images, labels) = network(), data()
    made = objective(student, Teacher(Convolutional().astype(np.float64)), [("norm", "layer")])
    loss, _ = made(student, images, labels)
    loss.backward()
    assert made.module.projections[0].weight.shape == (2, 6) and made.module.projections[0].weight.grad.any()


# --- projections ---------------------------------------------------------------------------------------------------


def test_looking_at_widths_changes_nothing():
    student = randomise(Strict(), np.random.default_rng(0)).train()
    before = student.state_dict()
    objective(student, layers=[("norm", "norm")])
    assert student.training and student.drop.training
    for key, array in student.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_projections_stand_where_widths_differ_and_start_from_the_seed():
    student = network()
    first, again, other = (objective(student, layers=LAYERS[:2], seed=seed).module for seed in (1, 1, 2))
    same_width = objective(student, teacher(6), LAYERS[:2]).module
    assert list(first.state_dict()) == [f"projections.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")]
    assert same_width is None
    for name, array in first.state_dict().items():
        np.testing.assert_array_equal(array, again.state_dict()[name])
        assert (array != other.state_dict()[name]).all() and abs(array).max() <= 1 / np.sqrt(6)


def test_its_repr_tells_layers_and_settings_in_one_line():
    student = network()
    text = repr(objective(student, layers=[("norm", "norm")], weight=2.0))
    assert text.startswith("FeatureDistillation(teacher=Teacher(VisionTransformer, ") and "\n" not in text
    assert text.endswith("layers=[('norm', 'norm')], weight=2.0, label_smoothing=0.0, seed=0)")


@students
@pytest.mark.parametrize("layout", [(1, 1), (2, 2)])
def test_layouts_agree(kind, layout):
    results = []
    for cut in (Layout(), Layout(*layout)):
        student = network(kind, drop_path_rate=0.3)
        made = objective(student)
        named = [*student.named_parameters(), *made.module.named_parameters()]
        optimizer, batch = SGD(named, lr=0.1), Batch(*data(7), np.arange(7))
        with cut:
            seen = [train_step(student, made, batch, optimizer, 0, step, cut).loss for step in range(2)]
        results.append([np.array(seen), *(p.data for _, p in named)])
    for got, expected in zip(*results):
        close(got, expected)


def test_a_step_on_a_gpu(gpu):
    results = []
    for device in ("cpu", "cuda"):
        student, own = network().to(device), Teacher(network(seed=9, embed_dim=8).to(device))
        batch = Batch(*data(), np.arange(4)).to(device)
        made = FeatureDistillation(own, student, batch.images, LAYERS)
        made.module.astype(np.float64)
        optimizer = SGD([*student.parameters(), *made.module.parameters()], lr=0.1)
        loss = train_step(student, made, batch, optimizer, 0, 0).loss
        results.append([loss, *student.state_dict().values(), *made.module.state_dict().values()])
    for got, expected in zip(*results):
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)
    with pytest.raises(TypeError, match="the images are on cpu, the teacher is on cuda:0"):
        made(network(), *data())


def test_a_run_saves_its_projections_and_goes_on(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 4, 4)).astype(np.uint8)
    dataset = Dataset("noise", pixels, np.arange(6) % 3, list("abc"))

    def run(name, resume=False):
        student, loader = network(dtype=np.float32), Loader(dataset, 3)
        made = FeatureDistillation(teacher(dtype=np.float32), student, loader.batch(0, 0).images)
        named = [*student.named_parameters(), *made.module.named_parameters()]
        config = TrainConfig(tmp_path / name, epochs=2, progress=False)
        fit(student, SGD(named), loader, loader, config, made, resume)
        return made.module.state_dict(), load_checkpoint(tmp_path / name / "last.npz").objective

    trained, saved = run("first")
    assert saved.keys() == trained.keys() == {"projections.0.weight", "projections.0.bias"}
    resumed, _ = run("first", resume=True)
    for key, array in saved.items():
        np.testing.assert_array_equal(array, trained[key])
        np.testing.assert_array_equal(resumed[key], trained[key])


# --- what it does not do -------------------------------------------------------------------------------------------


def test_a_layer_without_a_graph_gets_a_sentence():
    student, (images, labels) = network(), data()
    made = objective(student, layers=[("blocks.0", "norm")])
    student.set_grad_checkpointing()
    with pytest.raises(
        ValueError, match=r"layer blocks.0 was computed without a graph.*set_grad_checkpointing\(False\)"
    ):
        made(student, images, labels)
    made(student.eval(), images, labels)
    evaluate(student, [Batch(images, labels, np.arange(4))], objective=made.evaluation)
    pooled = objective(student.train(), layers=[(POOLED, POOLED)])
    loss, _ = pooled(student, images, labels)  # what comes after the blocks has its graph
    loss.backward()
    assert student.blocks[0].mlp.fc1.weight.grad.any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: objective(network(), weight=-1), ValueError, "weight must be at least 0, got -1"),
        (lambda: objective(network(), network()), TypeError, r"teacher must be a Teacher, got Vis.*Teacher\(model\)"),
        (lambda: objective(network(), StoredLogits(np.ones((2, 2)))), TypeError, "must be a Teacher, got StoredLogits"),
    ],
)
def test_settings_that_make_no_sense_get_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()
