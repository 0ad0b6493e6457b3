r"""``inception``: the network and the resizing of clean-fid, whose distance alone is called FID.

A published FID is a number of one network, one way of resizing and one count of images. Here

* the network is the Inception-v3 of 2015 in TorchScript, ``inception-2015-12-05.pt``, read at
  its last pool: 2,048 numbers an image; its own resizing inside is not used;
* an image is brought to 299 × 299 by clean-fid's mode "clean": Pillow's bicubic filter with its
  antialiasing, a channel at a time, in float32, clipped to [0, 255] and *not* rounded. The
  resizer is clean-fid's own code;
* pixels enter as :math:`(x - 128) / 128`.

A grey image is repeated to three channels, as clean-fid does on reading it from a file. What is
*not* assumed: that the file is at hand. It is 95 MB, and not ours to ship; see
:mod:`genflow.metrics.weights`. Its sha256 is the feature's digest, so reports by different files
can be told apart. Nor is the number of images: FID falls with it, published figures mean 50,000.

References:
    | On Aliased Resizing and Surprising Subtleties in GAN Evaluation (Parmar et al., 2022)
    | https://arxiv.org/abs/2104.11222

    | Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2015)
    | https://arxiv.org/abs/1512.00567
"""

__all__ = ["Inception"]

from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
from warnings import catch_warnings

import numpy as np
import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.files import cache_folder
from genflow.metrics.inputs import check_images
from genflow.metrics.weights import digest_of_file, find

FILE = "inception-2015-12-05.pt"
SOURCE = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
SIDE, WIDTH = 299, 2048
BATCH = 32  # images that are enlarged at once: bounds the memory, not the answer


class Inception(nn.Module):
    r"""Inception features by clean-fid's rules, for 8-bit images of any size.

    Arguments:
        channels: The channels of the images, 1 or 3.
        weights: The TorchScript file; None to look into the cache folder.

    Raises:
        Absent: If the file is not there.
        UserError: If the file is something else, or the images have other channels.
    """

    name = "inception"
    prefix = "FID"

    def __init__(self, channels: int, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()

        if channels not in (1, 3):
            raise UserError(
                f"channels: {channels} is not 1 or 3; the feature 'inception' reads grey or "
                "colour images."
            )

        file = _file(weights)
        self.channels = channels
        self.resize = f"clean-fid's 'clean': Pillow bicubic to {SIDE} × {SIDE}, not rounded"
        if channels == 1:
            self.resize += ", grey repeated to 3 channels"
        self.digest = digest_of_file(file)
        self.layers = _layers(file)
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # tells the device

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        r"""Maps images to features.

        Arguments:
            images: The 8-bit images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features in float32, with shape :math:`(n, 2048)`.

        Raises:
            UserError: If they are no 8-bit images of the channels that it was made for.
        """
        check_images(images, self.name, shape=(self.channels, *images.shape[2:]))

        return torch.cat([self._part(part) for part in images.split(BATCH)])

    def _part(self, images: Tensor) -> Tensor:
        x = resized(images).to(self.zero.device).expand(-1, 3, -1, -1)

        return self.layers((x - 128) / 128).reshape(len(images), WIDTH)


def resized(images: Tensor) -> Tensor:
    r"""Brings 8-bit images to 299 × 299 by clean-fid's mode "clean".

    Arguments:
        images: The images, grey or in colour, with shape :math:`(n, C, H, W)`.

    Returns:
        Float32 in [0, 255], with shape :math:`(n, C, 299, 299)`.
    """
    from cleanfid.resize import build_resizer

    resizer = build_resizer("clean")
    channels = images.shape[1]

    def one(image: np.ndarray) -> np.ndarray:
        return resizer(np.broadcast_to(image, (*image.shape[:2], 3)))[:, :, :channels]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow lets go of the lock
        done = list(pool.map(one, images.cpu().permute(0, 2, 3, 1).numpy()))

    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2)


def _file(given: str | os.PathLike[str] | None) -> Path:
    """The TorchScript file: the caller's, which may have any name, or the cache folder's."""
    if given is not None:
        if not Path(given).is_file():
            raise UserError(
                f"feature 'inception': '{given}' is no file; give {FILE}, which comes from "
                f"{SOURCE}."
            )
        return Path(given)

    return find("inception", (FILE,), SOURCE, folder=cache_folder()) / FILE


def _layers(file: os.PathLike[str]) -> nn.Module:
    """The part of the network from scaled pixels to its last pool."""
    try:
        with catch_warnings(action="ignore", category=FutureWarning):  # the file is TorchScript
            layers = torch.jit.load(str(file), map_location="cpu").eval().layers
        with torch.no_grad():
            out = layers(torch.zeros(1, 3, SIDE, SIDE))
    except (RuntimeError, AttributeError) as error:
        said = str(error).strip().splitlines()
        raise UserError(
            f"feature 'inception': '{file}' (sha256 {digest_of_file(file)[:12]}) is not the "
            f"TorchScript network of {SOURCE} ({said[-1] if said else 'unreadable'})."
        ) from None

    if out.numel() != WIDTH:
        raise UserError(
            f"feature 'inception': '{file}' (sha256 {digest_of_file(file)[:12]}) gives "
            f"{out.numel()} numbers an image, not {WIDTH}; take the network of {SOURCE}."
        )

    return layers
