"""Random colour and blur: ``ColorJitter``, ``RandomGrayscale``, ``Solarization``, ``GaussianBlur``."""

from dataclasses import dataclass

import numpy as np

from minivit.backend import Array
from minivit.data.augment.color import brightness, contrast, grayscale, hue, saturation
from minivit.data.augment.filters import gaussian_blur
from minivit.data.augment.levels import solarize
from minivit.data.augment.ops import Operation, apply, draw


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, in an order drawn for each image.

    The first three blend by a factor from max(0, 1 − x) … 1 + x, ``hue`` (at most ½) turns the colour circle by a part
    from −x … x; all uniform, as in torchvision. What is 0 is left out.

    Raises ValueError for a negative amount, or a hue above ½.

    >>> image = np.full((1, 3, 1, 1), 100, np.uint8)
    >>> ColorJitter(brightness=0.4)(image, samples=np.array([7]), seed=0, epoch=0).ravel()
    array([75, 75, 75], dtype=uint8)
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, amount in vars(self).items():
            if amount < 0:
                raise ValueError(f"{name} must be 0 or more, got {amount}")
        if self.hue > 0.5:
            raise ValueError(f"hue must be at most 0.5, half of the colour circle, got {self.hue}")

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        numbers = draw(samples, (8,), seed, "color_jitter", epoch)
        amounts = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        lowest, highest = np.maximum(1 - amounts, 0), 1 + amounts
        lowest[3], highest[3] = -self.hue, self.hue
        strengths = lowest + (highest - lowest) * numbers[:, :4]  # (B, 4)
        orders = numbers[:, 4:].argsort(1, kind="stable")  # (B, 4)
        for chosen in orders.T:
            strength = strengths[np.arange(len(chosen)), chosen]
            choice = np.where(amounts[chosen] > 0, chosen, -1)
            images = apply(images, (brightness, contrast, saturation, hue), choice, strength)
        return images


@dataclass(frozen=True)
class RandomGrayscale:
    """Take the colours from each image with probability ``p``. Raises ValueError where ``p`` is no probability.

    >>> red = np.array([255, 0, 0], np.uint8).reshape(1, 3, 1, 1)
    >>> RandomGrayscale(p=1)(red, samples=np.array([7]), seed=0, epoch=0).ravel()
    array([76, 76, 76], dtype=uint8)
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        number = draw(samples, (), seed, "grayscale", epoch)
        return _with_probability(self.p, number, images, lambda x, _: grayscale(x), number)


@dataclass(frozen=True)
class Solarization:
    """Invert the levels from ``threshold`` (0 … 256) on, in each image with probability ``p``.

    Raises ValueError where ``p`` is no probability.

    >>> image = np.array([[[[100, 200]]]], np.uint8)
    >>> Solarization(p=1)(image, samples=np.array([7]), seed=0, epoch=0)[0, 0]
    array([[100,  55]], dtype=uint8)
    """

    p: float = 0.2
    threshold: int = 128

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        number = draw(samples, (), seed, "solarization", epoch)
        return _with_probability(self.p, number, images, solarize, np.full(len(number), self.threshold))


@dataclass(frozen=True)
class GaussianBlur:
    """Blur each image with probability ``p``, by a standard deviation drawn uniformly from ``sigma``.

    ``sigma`` is in parts of the height, so that it means the same at every size of the picture; the default is what is
    usual at 224 pixels, 0.1 to 2 of them.

    Raises ValueError where ``p`` is no probability, or ``sigma`` no range.

    >>> dot = np.array([0, 0, 255, 0, 0], np.uint8).reshape(1, 1, 1, 5)
    >>> GaussianBlur(p=1, sigma=(1, 1))(dot, samples=np.array([7]), seed=0, epoch=0).ravel()
    array([ 15,  61, 104,  61,  15], dtype=uint8)
    """

    p: float = 0.5
    sigma: tuple[float, float] = (0.1 / 224, 2 / 224)

    def __post_init__(self) -> None:
        _check_probability(self.p)
        low, high = self.sigma
        if not 0 <= low <= high:
            raise ValueError(f"sigma must be a range of two numbers from 0 on, got {self.sigma}")

    def __call__(self, images: Array, samples: Array, seed: int, epoch: int) -> Array:
        low, high = self.sigma
        number, place = draw(samples, (2,), seed, "blur", epoch).T
        sigma = (low + (high - low) * place) * images.shape[2]
        return _with_probability(self.p, number, images, gaussian_blur, sigma)


def _with_probability(p: float, number: np.ndarray, images: Array, operation: Operation, strength: np.ndarray) -> Array:
    """The operation for the images whose ``number``, drawn from [0, 1), is below ``p``."""
    return apply(images, (operation,), np.where(number < p, 0, -1), strength)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability between 0 and 1, got {p}")
