"""What do a network's features say of the classes, if nothing of the network is changed?

The images go through once, and what comes out is kept: ``features``. Then three readers of these vectors, from the one
that learns nothing to the one that is trained:

    knn             ask the nearest training images
    ridge_probe     a linear layer, in closed form
    linear_probe    a linear layer behind batch normalisation, by stochastic gradient descent

All take arrays on the host: features (n, D) and classes (n,), of training and of test images.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from minivit.analysis.batches import each_batch
from minivit.analysis.features import read_batch
from minivit.autograd import Tensor
from minivit.backend import to_device
from minivit.data import Batch, Loader
from minivit.nn import BatchNorm1d, Linear, Module, evaluating, init
from minivit.ops import cross_entropy
from minivit.optim import LARS, warmup_cosine
from minivit.random import generator

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT = 0.2  # of the training images, where a penalty is to be chosen


class Features(NamedTuple):
    """What a network made of n images, and their labels."""

    cls: np.ndarray | None  # (n, D), the class token; None where there is none
    mean: np.ndarray  # (n, D), the mean of the patch tokens
    labels: np.ndarray  # (n,)


def features(
    model: Module, batches: Loader | Iterable[Batch], layer: int | None = None, progress: bool = True
) -> Features:
    """The tokens of a Vision Transformer, pooled in both ways, for the images of a Loader or of batches.

    ``layer``: of the tokens that leave block 1 … L; by default of those that ``model.forward_features`` gives, behind
    the last norm. The images of a Loader are those of its epoch 0: make it without shuffling and augmentation. The
    model is in evaluation mode meanwhile.

    Raises ValueError for a layer that there is not, and for no images.

    >>> from minivit.models import create_model
    >>> batch = Batch(np.ones((2, 1, 28, 28), np.float32), np.array([0, 1]), np.arange(2))
    >>> found = features(create_model("vit_nano_patch7_28"), [batch], layer=3)
    >>> found.cls.shape, found.mean.shape, found.labels.tolist()
    ((2, 64), (2, 64), [0, 1])
    """
    if layer is not None and not 1 <= layer <= len(model.blocks):
        raise ValueError(f"layer must lie in 1 … {len(model.blocks)}, the blocks of this network, got {layer}")
    name = "norm" if layer is None else f"blocks.{layer - 1}"
    found = []
    for batch in each_batch(model, batches, "features", progress):
        z = read_batch(model, batch.images, [name])[name]  # (B, prefix + N, D)
        cls, mean = z[:, 0].copy(), z[:, model.num_prefix_tokens :].mean(1)  # a view would keep all tokens in memory
        found.append((cls, mean, to_device(batch.labels, "cpu")))
    cls, mean, labels = (np.concatenate(parts) for parts in zip(*found))
    return Features(None if model.cls_token is None else cls, mean, labels)


# --- nearest neighbours ------------------------------------------------------------------------------------------


def knn(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray,
    k: int = 20, temperature: float = 0.07, block: int = 100,
) -> float:  # fmt: skip
    """The share of test images whose class their ``k`` nearest training images tell.

    Near is what has a large cosine s. Each neighbour votes for its class with a weight of exp(s / T), T being the
    ``temperature``. (Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018,
    arXiv:1805.01978, section 3.4; DINO is measured so.) ``block`` test images are compared at a time.

    Raises ValueError for arrays that do not fit together, and for k that is not in 1 … the number of training images.

    >>> x, y = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1])
    >>> knn(x, y, 5 * x, y, k=1)
    1.0
    """
    classes = _check(train_x, train_y, test_x, test_y)
    if not 1 <= k <= len(train_x) or not temperature > 0:
        raise ValueError(
            f"k must lie in 1 … {len(train_x)}, the number of training images, and temperature be above 0, "
            f"got {k} and {temperature}"
        )
    train, test = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train_x, test_x))
    correct = 0
    for start in range(0, len(test), block):
        cosine = test[start : start + block] @ train.T  # (b, n)
        nearest = np.argpartition(cosine, -k, axis=1)[:, -k:]
        weights = np.exp((np.take_along_axis(cosine, nearest, 1).astype(np.float64) - 1) / temperature)
        ballots = np.arange(len(cosine))[:, None] * classes + train_y[nearest]  # (b, k): the box of image and class
        votes = np.bincount(ballots.ravel(), weights.ravel(), minlength=len(cosine) * classes)
        correct += int((votes.reshape(-1, classes).argmax(1) == test_y[start : start + block]).sum())
    return correct / len(test)


# --- a linear layer in closed form -------------------------------------------------------------------------------


def ridge(x: np.ndarray, y: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """W (D, K) and b (K,) that make ‖x W + b − y‖² + l2 · n ‖W‖² smallest, for x (n, D) and y (n, K), in float64.

    Whatever W is, the best b makes the mean of x W + b that of y. So both are centred, x̂ = x − x̄ and ŷ = y − ȳ; then
    the derivative is zero at

        W = (x̂ᵀx̂ + l2 n I)⁻¹ x̂ᵀŷ        D equations,
          = x̂ᵀ (x̂x̂ᵀ + l2 n I)⁻¹ ŷ        n equations

    which are equal, as x̂ᵀ (x̂x̂ᵀ + c I) = (x̂ᵀx̂ + c I) x̂ᵀ. Whichever are fewer are solved.

    Raises ValueError for a penalty that is not above 0.

    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> [array.round(3) for array in ridge(x, 2 * x + 1, l2=1e-9)]
    [array([[2.]]), array([1.])]
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, or features that depend on one another have no answer, got {l2}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, width = x.shape
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    if width <= n:
        weight = np.linalg.solve(x.T @ x + l2 * n * np.eye(width), x.T @ y)
    else:
        weight = x.T @ np.linalg.solve(x @ x.T + l2 * n * np.eye(n), y)
    return weight, y_mean - x_mean @ weight


class RidgeResult(NamedTuple):
    """Accuracy on the test images, and the penalty that was used."""

    accuracy: float
    l2: float


def ridge_probe(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray,
    l2: float | Sequence[float] = PENALTIES, seed: int = 0,
) -> RidgeResult:  # fmt: skip
    """The share of test images that a linear layer is right about, fitted in closed form: see ``ridge``.

    Features are brought to mean 0 and variance 1, as measured on the training images, so that ``l2`` means the same for
    all of them. The targets are 1 for the class and 0 for the others. Of several penalties the one is taken that does
    best on a fifth of the training images (chosen by ``seed``) when fitted to the others, the largest of equals; then
    all are fitted. Raghu et al., "Do Vision Transformers See Like Convolutional Neural Networks?" (2021,
    arXiv:2108.08810), probe features so.

    Raises ValueError for arrays that do not fit together, fewer than two training images, and bad penalties.

    >>> x, y = np.array([[0.0], [0.2], [1.8], [2.0]]), np.array([0, 0, 1, 1])
    >>> ridge_probe(x, y, x + 0.1, y, l2=0.01)
    RidgeResult(accuracy=1.0, l2=0.01)
    """
    classes = _check(train_x, train_y, test_x, test_y)
    if len(train_x) < 2:
        raise ValueError(f"ridge_probe needs at least two training images, got {len(train_x)}")
    train_x, test_x = _standardise(train_x, test_x)
    targets = np.eye(classes)[train_y]

    def accuracy(fit: np.ndarray | slice, penalty: float, x: np.ndarray, y: np.ndarray) -> float:
        weight, bias = ridge(train_x[fit], targets[fit], penalty)
        return _accuracy(x @ weight + bias, y)

    penalties = sorted(np.atleast_1d(l2).tolist(), reverse=True)
    if len(penalties) > 1:
        order = generator(seed, "held out").permutation(len(train_x))
        held, rest = np.split(order, [max(1, int(HELD_OUT * len(order)))])
        best = max(penalties, key=lambda penalty: accuracy(rest, penalty, train_x[held], train_y[held]))
    else:
        (best,) = penalties
    return RidgeResult(accuracy(slice(None), best, test_x, test_y), best)


# --- a linear layer, trained -------------------------------------------------------------------------------------


def linear_probe(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray,
    steps: int = 7000, batch_size: int = 1024, lr: float = 0.1, seed: int = 0, progress: bool = True,
) -> float:  # fmt: skip
    """The share of test images that a linear layer is right about, trained as MAE's are: He et al., 2022, table 10.

    Batch normalisation without gain and bias, then the layer; LARS with momentum 0.9 and no decay. The rate is ``lr`` ·
    ``batch_size`` / 256; it rises over the first ninth of the steps, and then falls by half a cosine. MAE's 90 epochs
    of ImageNet, in batches of 16,384, are 7,000 steps; their number matters, and not that of epochs, because a step of
    LARS changes the weights by a share of their length.

    The features are stored ones, computed once, so unlike in MAE each image is seen in one form only: no crops and no
    flips.

    Raises ValueError for arrays that do not fit together, or fewer than two training images.

    >>> x, y = np.repeat(np.eye(4), 5, axis=0), np.repeat(np.arange(4), 5)
    >>> linear_probe(x, y, x, y, steps=100, lr=2.0)
    1.0
    """
    classes = _check(train_x, train_y, test_x, test_y)
    if len(train_x) < 2:
        raise ValueError(f"linear_probe needs at least two training images, got {len(train_x)}")
    train_x, test_x = (x.astype(np.float32, copy=False) for x in (train_x, test_x))
    probe = LinearProbe(train_x.shape[1], classes, seed)
    optimizer = LARS(probe.named_parameters())
    batch = min(batch_size, len(train_x))
    a_pass = len(train_x) // batch  # steps
    for step in tqdm(range(steps), desc="linear probe", leave=False, disable=None if progress else True):
        if step % a_pass == 0:
            order = generator(seed, "probe order", step // a_pass).permutation(len(train_x))
        chosen = order[step % a_pass * batch :][:batch]
        optimizer.lr = warmup_cosine(step, steps, steps // 9, lr * batch_size / 256)
        optimizer.zero_grad()
        cross_entropy(probe(Tensor(train_x[chosen])), train_y[chosen]).backward()
        optimizer.step()
    with evaluating(probe):
        return _accuracy(probe(Tensor(test_x)).numpy(), test_y)


class LinearProbe(Module):
    """Features (B, D) → logits (B, K): batch normalisation without gain and bias, and a linear layer.

    The normalisation brings the features of any network to one scale, for which one learning rate is right.

    >>> LinearProbe(6, 3)(Tensor(np.ones((5, 6), np.float32))).shape
    (5, 3)
    """

    def __init__(self, width: int, classes: int, seed: int = 0):
        self.norm = BatchNorm1d(width, eps=1e-6, affine=False)
        self.head = Linear(width, classes)
        self.head.weight.data = init.trunc_normal((classes, width), generator(seed, "probe"), std=0.01)
        self.head.bias.data[...] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the mean and the deviation of ``train`` taken away; a feature that never varies becomes 0."""
    train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
    mean, std = train.mean(0), train.std(0)
    scale = np.where(std > 1e-6 * np.abs(mean), 1 / np.maximum(std, 1e-300), 0.0)
    return (train - mean) * scale, (test - mean) * scale


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    return float((scores.argmax(1) == labels).mean())


def _check(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> int:
    """The number of classes. Raises ValueError where the arrays are not features and labels of the same kind."""
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.shape != (len(x),) or not len(x):
            raise ValueError(
                f"{name}_x must be features (n, D) and {name}_y labels (n,) of at least one image, "
                f"got shapes {x.shape} and {y.shape}"
            )
        if y.dtype.kind not in "iu" or y.min() < 0:
            raise ValueError(f"{name}_y must be class numbers from 0 on, got {y.dtype} from {y.min()} on")
        if not np.isfinite(x).all():
            raise ValueError(f"{name}_x must be finite, got NaN or infinity")
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"train_x and test_x must have as many features, got {train_x.shape[1]} and {test_x.shape[1]}")
    return int(train_y.max()) + 1
