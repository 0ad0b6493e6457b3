r"""``genflow-small``: a small trained feature net that ships with the package.

Four convolutions with ReLUs, trained to tell twenty classes apart (ten of Fashion-MNIST, ten of
the digits of scikit-learn); what is kept are the channels' means and deviations of the last map,

.. math:: \phi(x) = (\mathrm{mean}_{ij} \, h_4, \; \mathrm{std}_{ij} \, h_4) \in \mathbb{R}^{128}.

Trained filters see missing classes that random ones hardly notice: eight classes of ten of
Fashion-MNIST, 2,000 images each, are at 7.5 times the floor, and at 3.3 times by ``random-conv``;
of the digits at 2.8 and 1.6 times (``benchmarks/metrics.py``).

An image of any size from 8 pixels is brought to 32 × 32 first, its sides one by one, and a colour
image is read as its channels, each a grey image, one after the other: the width is 128 C. So
colours count, which they would not in a luminance.

What is *not* assumed: that the data look like clothes or digits. But for photographs the net is
an arbitrary one, and in pictures larger than 32 pixels it is blind to all finer detail: there
take ``inception`` or ``dinov2`` if their weights are at hand. Its Fréchet distance is called
"FD-genflow-small", and nothing else. Accuracy, data, licence and the sha256 of the weights are
in the card beside them, ``nets/genflow-small.json``; ``benchmarks/feature_net.py`` trains it.
"""

__all__ = ["Small", "SmallNet"]

import json
from pathlib import Path

from safetensors.torch import load_file
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genflow.errors import UserError
from genflow.metrics.inputs import check_images
from genflow.metrics.weights import digest_of_file

NETS = Path(__file__).parent / "nets"
SIDE, LEAST = 32, 8


class SmallNet(nn.Sequential):
    r"""The trunk: grey images in [−1, 1] at 32 × 32 to 128 numbers.

    Arguments:
        normalised: Whether each convolution is followed by batch normalisation, as in training;
            the shipped weights have it folded in.
    """

    WIDTHS = (1, 16, 32, 64, 64)

    def __init__(self, normalised: bool = False) -> None:
        layers: list[nn.Module] = []
        for i, (inner, outer) in enumerate(zip(self.WIDTHS, self.WIDTHS[1:], strict=False)):
            layers.append(nn.Conv2d(inner, outer, 3, stride=min(i + 1, 2), padding=1))
            if normalised:
                layers.append(nn.BatchNorm2d(outer))
            layers.append(nn.ReLU())

        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        r"""Maps images, with shape :math:`(n, 1, 32, 32)`, to features, :math:`(n, 128)`."""
        h = super().forward(x)
        mean = h.mean(dim=(2, 3))
        variance = (h - mean[:, :, None, None]).square().mean(dim=(2, 3))

        # The root has no slope at zero, where a dead channel sits: training needs the floor.
        return torch.cat((mean, (variance + 1e-6).sqrt()), dim=1)


class Small(nn.Module):
    r"""The shipped net as a feature: 8-bit images of any size from 8 pixels to :math:`128 C`.

    Raises:
        UserError: If the weights are not those of the card.

    Example:
        >>> phi = Small()
        >>> phi(torch.zeros(5, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([5, 384])
    """

    name = "genflow-small"
    prefix = "FD-genflow-small"
    resize = (
        f"torch bilinear with antialiasing to {SIDE} × {SIDE}, not rounded, channel by channel"
    )

    def __init__(self) -> None:
        super().__init__()

        file = NETS / f"{self.name}.safetensors"
        card = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        self.digest = digest_of_file(file)
        if self.digest != card["sha256"]:
            raise UserError(
                f"feature '{self.name}': '{file}' has the sha256 {self.digest[:12]}, its card "
                f"{card['sha256'][:12]}; install genflow again."
            )

        self.net = SmallNet()
        self.net.load_state_dict(load_file(file))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        r"""Maps images to features.

        Arguments:
            images: The 8-bit images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features in float32, with shape :math:`(n, 128 C)`.

        Raises:
            UserError: If they are no 8-bit images of 8 pixels or more a side.
        """
        check_images(images, self.name, least=LEAST)

        return self.embed(images.to(next(self.net.parameters()).device).float() / 127.5 - 1)

    def embed(self, images: Tensor) -> Tensor:
        r"""Maps images in [−1, 1] to features, differentiably.

        Arguments:
            images: The images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features, with shape :math:`(n, 128 C)`.
        """
        n, channels = images.shape[:2]
        x = images.flatten(0, 1)[:, None]

        return self.net(scaled(x)).unflatten(0, (n, channels)).flatten(1)


def scaled(x: Tensor) -> Tensor:
    r"""Brings grey images, with shape :math:`(n, 1, H, W)`, to 32 × 32."""
    if x.shape[2:] == (SIDE, SIDE):
        return x

    return F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
