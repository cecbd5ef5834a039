"""Distillation from logits: its loss against its formula, its gradients, and a teacher that is only asked."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivit import Tensor, gradcheck
from minivit.data import Batch
from minivit.distillation import HardDistillation, SoftDistillation, Teacher, kl_divergence
from minivit.models import VisionTransformer, VisionTransformerDistilled
from minivit.nn import BatchNorm1d, Dropout, Linear, Module, observe
from minivit.objective import Classification
from minivit.random import sampling
from minivit.training import evaluate
from tests.golden import cases, distillation_cases
from tests.nn.test_gradients import EPS, randomise
from tests.strategies import flags, generators

OBJECTIVES = {
    "soft": lambda teacher, **options: SoftDistillation(teacher, **{"alpha": 0.3, "temperature": 2.0} | options),
    "hard": lambda teacher, **options: HardDistillation(teacher, **{"alpha": 0.3} | options),
}
KINDS = (VisionTransformer, VisionTransformerDistilled)
objectives = pytest.mark.parametrize("name", OBJECTIVES)
students = pytest.mark.parametrize("kind", KINDS)


def network(kind=VisionTransformer, seed=0, dtype=np.float64, **options):
    """For images (2, 4, 4) and 3 classes."""
    options = dict(embed_dim=6, depth=2, num_heads=2, norm_eps=EPS, weight_init="skip") | options
    return randomise(kind(4, 2, 2, 3, **options), np.random.default_rng(seed)).astype(dtype)


def teacher(seed=9, **options):
    return Teacher(network(seed=seed, depth=1, **options))


def data(size=4, soft=False, seed=0):
    """Images and labels; the labels of a mixed batch are soft."""
    rng = np.random.default_rng(seed)
    labels = rng.dirichlet(np.ones(3), size) if soft else rng.integers(0, 3, size)
    return rng.standard_normal((size, 2, 4, 4)), labels


def log_softmax(x):
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


# --- the divergence ------------------------------------------------------------------------------------------------


@st.composite
def logits_of_two(draw):
    """Of student and teacher, (B, K), and a temperature."""
    rng, shape = draw(generators), (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    return scale * rng.standard_normal(shape), scale * rng.standard_normal(shape), draw(st.sampled_from([0.5, 1, 3.0]))


@given(logits_of_two())
def test_the_divergence_and_its_gradient_are_those_of_the_formula(drawn):
    s, t, temperature = drawn
    log_q, log_p = log_softmax(s / temperature), log_softmax(t / temperature)
    student = Tensor(s, requires_grad=True)
    divergence = kl_divergence(student, Tensor(t), temperature)
    divergence.backward()
    assert divergence.item() >= -1e-15
    close(divergence.item(), (np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    close(student.grad, (np.exp(log_q) - np.exp(log_p)) / temperature / len(s))


@given(logits_of_two())
def test_the_divergence_passes_the_gradient_check(drawn):
    """Where two that are sure agree, its gradient is lost in the rounding of numbers of order one; so one is added."""
    s, t, temperature = drawn
    gradcheck(lambda s: kl_divergence(s, Tensor(t), temperature) + 0.1 * s.sum(), s)


@given(logits_of_two(), st.floats(-5, 5))
def test_a_perfect_imitation_costs_nothing_and_learns_nothing(drawn, shift):
    s, _, temperature = drawn
    student = Tensor(s, requires_grad=True)
    divergence = kl_divergence(student, Tensor(s + shift), temperature)
    divergence.backward()
    assert abs(divergence.item()) <= 1e-13 and abs(student.grad).max() <= 1e-13


@given(logits_of_two())
def test_at_a_high_temperature_it_is_the_squared_distance_of_centred_logits(drawn):
    """T² KL → ½ ‖(s − s̄) − (t − t̄)‖² / K, and its gradient the distance itself."""
    s, t, _ = drawn
    student, temperature = Tensor(s, requires_grad=True), 1e4
    loss = kl_divergence(student, Tensor(t), temperature) * temperature**2
    loss.backward()
    distance = (s - s.mean(-1, keepdims=True)) - (t - t.mean(-1, keepdims=True))
    np.testing.assert_allclose(loss.item(), (distance**2).sum(-1).mean() / 2 / s.shape[-1], rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(student.grad, distance / s.shape[-1] / len(s), rtol=0.02, atol=1e-2)


def test_large_logits_and_float32():
    student, target = (
        Tensor(np.array([[900.0, -900.0, 0.0]], np.float32)[:, order]) for order in ([0, 1, 2], [1, 0, 2])
    )
    divergence = kl_divergence(student, target)
    assert divergence.dtype == np.float32 and divergence.item() == 1800.0


def test_the_teacher_receives_no_gradient():
    s, t = (Tensor([[1.0, 2.0]], requires_grad=True) for _ in range(2))
    kl_divergence(s, t).backward()
    assert t.grad is None and s.grad is not None


# --- the losses ----------------------------------------------------------------------------------------------------


def expected(
    name, logits, logits_dist, target, labels, alpha=0.3, temperature=2.0, reduction="batchmean", smoothing=0.0
):
    """The loss by its definition, from arrays."""
    classes = logits.shape[-1]
    truth = np.eye(classes)[labels] if labels.ndim == 1 else labels
    truth = (1 - smoothing) * truth + smoothing / classes
    loss = (1 - alpha) * -(truth * log_softmax(logits)).sum(-1).mean()
    if name == "hard":
        answers = np.eye(classes)[target.argmax(-1)]
        return loss + alpha * -(answers * log_softmax(logits_dist)).sum(-1).mean()
    log_p, log_q = log_softmax(target / temperature), log_softmax(logits_dist / temperature)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum() / (len(labels) * (classes if reduction == "mean" else 1))
    return loss + alpha * temperature**2 * divergence


@objectives
@students
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", [{}, {"alpha": 1.0}, {"alpha": 0.8, "label_smoothing": 0.2}])
def test_a_loss_is_that_of_its_formula(name, kind, soft, options):
    student, own, (images, labels) = network(kind), teacher(), data(soft=soft)
    loss, answer = OBJECTIVES[name](own, **options)(student, images, labels)
    output = student(images)
    logits, logits_dist = [y.data for y in output] if isinstance(output, tuple) else [output.data] * 2
    smoothing = options.get("label_smoothing", 0.0)
    alpha = options.get("alpha", 0.3)
    close(loss.item(), expected(name, logits, logits_dist, own.model(images).data, labels, alpha, smoothing=smoothing))
    close(answer.data, (logits + logits_dist) / 2)
    close(answer.data, student.eval()(images).data)


def test_temperature_and_reduction_reach_the_loss():
    student, own, (images, labels) = network(), teacher(), data()
    logits, target = student(images).data, own.model(images).data
    for temperature in (1.0, 4.0):
        for reduction in ("batchmean", "mean"):
            loss, _ = SoftDistillation(own, 0.5, temperature, reduction)(student, images, labels)
            close(loss.item(), expected("soft", logits, logits, target, labels, 0.5, temperature, reduction))


@objectives
@students
def test_without_a_share_the_teacher_makes_no_difference(name, kind):
    """α = 0: the cross-entropy of the first head, which is all there is of a plain network."""
    student, (images, labels) = network(kind), data()
    loss, _ = OBJECTIVES[name](teacher(), alpha=0.0, label_smoothing=0.1)(student, images, labels)
    first = student if kind is VisionTransformer else lambda x: student(x)[0]
    assert loss.item() == Classification(label_smoothing=0.1)(first, images, labels)[0].item()


@objectives
@given(kind=st.sampled_from(KINDS), training=flags, soft=flags, reduction=st.sampled_from(["batchmean", "mean"]))
@settings(max_examples=4)
def test_gradients_of_the_whole_loss_through_every_parameter(name, kind, training, soft, reduction):
    student, (images, labels) = network(kind, drop_path_rate=0.4, drop_rate=0.4).train(training), data(3, soft)
    options = {"reduction": reduction} if name == "soft" else {}
    objective = OBJECTIVES[name](teacher(), **options)

    def loss(images):  # the teacher's answer is a constant: its images are no argument
        with sampling(0, 0, np.arange(3)):
            return objective(lambda _: student(images), data(3)[0], labels)[0]

    assert gradcheck(loss, images, parameters=dict(student.named_parameters()), eps=1e-5) <= 1e-7


def test_each_head_learns_from_its_own_source():
    (images, labels), student = data(), network(VisionTransformerDistilled)
    for alpha, silent in ((0.0, "head_dist"), (1.0, "head")):
        student.zero_grad()
        OBJECTIVES["soft"](teacher(), alpha=alpha)(student, images, labels)[0].backward()
        learned = {name: bool(p.grad.any()) for name, p in student.named_parameters()}
        assert [name for name, some in learned.items() if not some] == [f"{silent}.weight", f"{silent}.bias"]


def test_test_images_are_measured_by_the_cross_entropy_of_the_mean_logits():
    student, (images, labels) = network(VisionTransformerDistilled), data(6)
    objective = OBJECTIVES["soft"](teacher())
    test = evaluate(student, [Batch(images, labels, np.arange(6))], objective=objective.evaluation)
    logits = np.mean([y.data for y in student.train()(images)], axis=0)
    close(test.loss, -log_softmax(logits)[np.arange(6), labels].mean())
    assert test.accuracy == (logits.argmax(-1) == labels).mean()


# --- the teacher ---------------------------------------------------------------------------------------------------


class Strict(Module):
    """A teacher that draws, and counts, while training; and remembers what it was shown."""

    def __init__(self):
        self.norm = BatchNorm1d(32)
        self.drop = Dropout(0.5)
        self.fc = Linear(32, 3)
        self.shown = []

    def forward(self, images):
        self.shown.append(images)
        return self.fc(self.drop(self.norm(Tensor(images.reshape(len(images), -1)))))


@objectives
def test_a_teacher_sees_the_students_images_and_stays_as_it_is(name):
    model = randomise(Strict(), np.random.default_rng(0))
    own, student, (images, labels) = Teacher(model), network(), data(soft=True)
    before = model.state_dict()
    objective = OBJECTIVES[name](own)
    student.train()
    losses = [objective(student, images, labels)[0] for _ in range(2)]
    losses[0].backward()
    assert losses[0].item() == losses[1].item()
    assert len(model.shown) == 2 and all(shown is images for shown in model.shown)
    assert not any(part.training for _, part in model.named_modules())
    assert not own(images).requires_grad and not own.features(images, ["norm"])[0].requires_grad
    assert all(p.grad is None for p in model.parameters())
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_a_teacher_is_no_part_of_what_is_trained_or_observed():
    objective, student, (images, labels) = OBJECTIVES["soft"](teacher()), network(), data()
    assert objective.module is None
    student.objective = objective  # not even here
    assert len(student.parameters()) == len(network().parameters())
    seen, own = [], {id(part) for _, part in student.named_modules()}
    with observe(lambda part, inputs, output: seen.append(id(part))):
        objective(student, images, labels)
    assert seen and set(seen) <= own


def test_an_objective_is_told_by_its_settings_and_its_teachers_weights():
    first, second = network(seed=9, depth=1), network(seed=9, depth=1)
    texts = [repr(OBJECTIVES["soft"](Teacher(model))) for model in (first, second)]
    assert texts[0] == texts[1] and "\n" not in texts[0]
    count = f"{first.num_parameters():,}"
    assert texts[0].startswith(f"SoftDistillation(teacher=Teacher(VisionTransformer, {count} parameters, checksum ")
    assert texts[0].endswith("alpha=0.3, temperature=2.0, reduction='batchmean', label_smoothing=0.0)")
    second.head.bias.data[1] += 1e-9
    assert repr(Teacher(second)) != repr(Teacher(first))
    assert repr(Teacher(copy.deepcopy(first).astype(np.float32))) != repr(Teacher(first))


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftDistillation(teacher(), alpha=1.5), r"alpha, .*, must lie in \[0, 1\], got 1\.5"),
        (lambda: HardDistillation(teacher(), alpha=-0.1), r"must lie in \[0, 1\], got -0\.1"),
        (lambda: SoftDistillation(teacher(), temperature=0), "temperature must be above 0, got 0"),
        (lambda: SoftDistillation(teacher(), reduction="sum"), "must be 'batchmean' or 'mean', got 'sum'"),
        (lambda: SoftDistillation(network()), r"must be a Teacher or StoredLogits, got Vis.*: write Teacher\(model\)"),
    ],
)
def test_settings_that_make_no_sense_get_a_sentence(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@objectives
def test_a_teacher_of_other_classes_gets_a_sentence(name):
    other = Teacher(
        randomise(VisionTransformer(4, 2, 2, 5, embed_dim=6, depth=1, num_heads=2), np.random.default_rng(0))
    )
    with pytest.raises(ValueError, match=r"the student's logits have shape \(4, 3\), the teacher's \(4, 5\)"):
        OBJECTIVES[name](other)(network(), *data())


# --- the original --------------------------------------------------------------------------------------------------


def test_deits_network_and_loss_have_these_numbers_and_gradients():
    differences = distillation_cases.differences()
    assert {"logits", "logits_dist", "evaluation", *distillation_cases.LOSSES} <= differences.keys()
    assert {"soft.dist_token.grad", "hard.head_dist.weight.grad"} <= differences.keys()
    assert max(differences.values()) <= 1e-12, max(differences, key=differences.get)


@pytest.mark.parametrize(
    ("change", "unchanged"),
    [
        (lambda model: model.dist_token.data.__iadd__(1e-5 * np.arange(8)), set()),
        (lambda model: model.head_dist.bias.data.__iadd__(1e-5 * np.arange(5)), {"logits"}),
    ],
)
def test_the_comparison_sees_a_small_change_of_the_network(change, unchanged):
    model = distillation_cases.student()
    change(model)
    differences = cases.differences("distillation", distillation_cases.ours(model))
    seen = {"logits", "logits_dist", "evaluation", *distillation_cases.LOSSES}
    assert {name for name in seen if differences[name] < 1e-9} == unchanged
