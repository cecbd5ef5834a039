"""Augmentation: chance changes to training images that leave the class as it is.

- ``crop``: ``RandomCrop`` moves the picture by a few pixels
- ``flip``: ``RandomHorizontalFlip`` shows its mirror image

Each is called as ``augment(images, samples, seed, epoch) -> images`` on a whole batch (B, C, H, W) and never
writes to its input. ``samples`` (B,) are the global keys of the images: what happens to an image depends on
(seed, epoch, its key) alone, so it is the same in any batch, thread or process.
"""

from minivit.data.augment.crop import RandomCrop
from minivit.data.augment.flip import RandomHorizontalFlip

__all__ = ["RandomCrop", "RandomHorizontalFlip"]
