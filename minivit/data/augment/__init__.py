"""Augmentation: chance changes to training images that leave the class as it is.

- ``crop``: ``RandomCrop`` moves the picture by a few pixels
- ``resized_crop``: ``RandomResizedCrop`` shows a part of it, as large as the whole
- ``flip``: ``RandomHorizontalFlip`` shows its mirror image
- ``jitter``: ``ColorJitter``, ``RandomGrayscale``, ``Solarization``, ``GaussianBlur``
- ``randaugment``, ``autoaugment``, ``trivialaugment``, ``three_augment``: policies, which draw from many operations
- ``geometry``, ``color``, ``levels``, ``filters``: these operations, as functions; ``ops`` does them by drawn number
- ``erasing``: ``RandomErasing`` hides a box of it
- ``mix``: ``Mix`` makes one image of two, and one label: mixup and CutMix
- ``compose``: ``augmentations``, all of them by name

Each but ``Mix`` is called as ``augment(images, samples, seed, epoch) -> images`` on a batch (B, C, H, W), and none
ever writes to its input. ``samples`` (B,) are the global keys of the images: what happens to an image depends on
(seed, epoch, its key) alone, so it is the same in any batch, thread or process. ``RandomErasing`` takes normalised
floats, and the others bytes; see ``minivit/data/loader.py``.
"""

from minivit.data.augment.autoaugment import AutoAugment
from minivit.data.augment.compose import augmentations
from minivit.data.augment.crop import RandomCrop
from minivit.data.augment.erasing import RandomErasing
from minivit.data.augment.flip import RandomHorizontalFlip
from minivit.data.augment.jitter import ColorJitter, GaussianBlur, RandomGrayscale, Solarization
from minivit.data.augment.mix import Mix
from minivit.data.augment.randaugment import RandAugment
from minivit.data.augment.resized_crop import RandomResizedCrop
from minivit.data.augment.three_augment import ThreeAugment
from minivit.data.augment.trivialaugment import TrivialAugment

__all__ = [
    "AutoAugment",
    "ColorJitter",
    "GaussianBlur",
    "Mix",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "Solarization",
    "ThreeAugment",
    "TrivialAugment",
    "augmentations",
]
