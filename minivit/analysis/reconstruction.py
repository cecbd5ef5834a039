"""What a masked autoencoder paints where it saw nothing: pictures to look at.

A network with ``norm_pix_loss`` says of each patch how its pixels differ from their mean, in units of their standard
deviation. Mean and deviation themselves it never says, and so there are two ways to show it:

    raw              as it comes: patches of equal mean and contrast, which do not fit together and look like noise
    denormalised     each patch with its true mean and deviation. These are taken from the image, of the masked patches
                     too: the picture shows what the network was not asked, and looks better than it has learned.

A figure should say which it is. Without ``norm_pix_loss`` predictions are pixels, and the two are the same.
"""

from typing import NamedTuple

import numpy as np

from minivit.autograd import Tensor
from minivit.backend import Array, to_device
from minivit.models.mae import MaskedAutoencoderViT, patch_statistics
from minivit.models.simmim import SimMIM


class Pictures(NamedTuple):
    """Images (B, C, H, W) on the host, in the units of those that the network was given."""

    masked: np.ndarray  # what the network saw, and ``fill`` where it saw nothing
    reconstruction: np.ndarray  # its prediction for all patches
    pasted: np.ndarray  # its prediction for the masked patches, the image itself elsewhere


def reconstruct(
    model: MaskedAutoencoderViT | SimMIM,
    images: Array,
    pred: Tensor,
    mask: Array,
    denormalise: bool = True,
    fill: float = 0.0,
) -> Pictures:
    """Pictures of what ``model`` made of ``images`` (B, C, H, W): ``pred`` and ``mask`` are what it returned for them.

    ``denormalise`` is for a network with ``norm_pix_loss``: see above. ``fill`` is the value of masked pixels; 0 is the
    mean colour of normalised images. (The loss asks for the masked patches alone, so a reconstruction of visible ones
    is not one that was learned.)

    >>> from minivit.models.mae import MaskedAutoencoderViT
    >>> model = MaskedAutoencoderViT(8, 4, embed_dim=8, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1)
    >>> images = np.ones((1, 3, 8, 8), np.float32)
    >>> _, pred, mask = model(images, mask=np.array([[0, 1, 1, 0]]))
    >>> reconstruct(model, images, pred, mask).masked[0, 0, ::4, ::4]
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    images, pred, mask = to_device(images, "cpu"), pred.numpy(), to_device(mask, "cpu")
    if model.norm_pix_loss and denormalise:
        mean, std = patch_statistics(model.patchify(images))
        pred = pred * std + mean
    reconstruction = model.unpatchify(pred)
    hidden = model.unpatchify(np.broadcast_to(mask[:, :, None], pred.shape)) == 1
    masked = np.where(hidden, np.asarray(fill, images.dtype), images)
    return Pictures(masked, reconstruction, np.where(hidden, reconstruction, images))
