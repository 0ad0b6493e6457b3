r"""A feature that needs no weights from anywhere: random convolutions, then means and deviations.

The first layer keeps the size, each next one halves it, until at most 8 pixels are left:

.. math:: h_{l+1} = \mathrm{ReLU}(W_l * h_l + b_l), \qquad
    \phi = (\mathrm{mean}_{ij} \, h_L, \; \mathrm{std}_{ij} \, h_L) \in \mathbb{R}^{64}

Random filters separate textures and noise well, and *classes* less well than trained ones.
Measured, one part of the real data against another, in units of the real-against-real distance:

==================  ==========  ==========  ==========  ==========  ==========  =======
data                noise 5 %   blur        8 classes   5 classes   1 class     uniform
==================  ==========  ==========  ==========  ==========  ==========  =======
digits, 898 each    2.3         230         2.0         4.5         20          310
CIFAR-10 (JPEG),    3.1         25          3.1         4.1         25          1300
2000 each
==================  ==========  ==========  ==========  ==========  ==========  =======

What is *not* assumed: a GPU, a download, or an image size; square images of 4 pixels and more do.

References:
    | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020)
    | https://arxiv.org/abs/2002.09797

    | Delving Deep into Rectifiers (He et al., 2015)
    | https://arxiv.org/abs/1502.01852
"""

__all__ = ["RandomConv"]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genflow.errors import UserError
from genflow.metrics.inputs import check_images
from genflow.metrics.weights import digest_of


class RandomConv(nn.Module):
    r"""Random convolutions: channels' means and deviations after a few strided layers.

    Narrow and shallow on purpose: more channels and layers raise the floor of a small data set
    faster than they see anything new (measured, on digits and on CIFAR-10).

    Weights are uniform with He's variance :math:`2 / \text{fan-in}`, drawn in float64 from a CPU
    generator without any transcendental function: the same bits, hence the same digest, on every
    machine. On a GPU that multiplies in TF32 the *features* agree to about 1e-3 only; compute
    them on the CPU, or forbid TF32, where the last digits matter.

    Arguments:
        channels: The number of channels :math:`C`, at least 1.
        size: The height and width of the images, at least 4.
        seed: The seed of the weights.

    Raises:
        UserError: If a number is out of its range.

    Example:
        >>> phi = RandomConv(channels=1, size=8)
        >>> phi(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([5, 64])
    """

    WIDTHS = (16, 32)  # the first layer's, then all others'
    BIAS = 0.5

    prefix = "FD-random-conv"
    resize = "none"

    def __init__(self, channels: int, size: int, seed: int = 0) -> None:
        super().__init__()

        if channels < 1:
            raise UserError(f"channels: {channels} is out of range; give 1 or more.")
        if size < 4:
            raise UserError(
                f"size: {size} is out of range; give 4 or more, or take the feature 'pixels'."
            )

        self.channels, self.size, self.seed = channels, size, seed
        self.name = f"random-conv-{channels}x{size}-{seed}"

        generator = torch.Generator().manual_seed(seed)
        fan, left, depth = channels, size, 0
        while left > 8 or depth < 2:
            width = self.WIDTHS[min(depth, 1)]
            bound = (6 / (9 * fan)) ** 0.5
            weight = _uniform((width, fan, 3, 3), bound, generator)
            self.register_buffer(f"weight_{depth}", weight, persistent=False)
            bias = _uniform((width,), self.BIAS, generator)
            self.register_buffer(f"bias_{depth}", bias, persistent=False)
            left = left if depth == 0 else (left + 1) // 2
            fan, depth = width, depth + 1

        self.depth = depth
        self.digest = digest_of(self.name, self.buffers())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        r"""Maps images to features.

        Arguments:
            images: The 8-bit images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features in float32, with shape :math:`(n, 64)`.

        Raises:
            UserError: If the images are not 8-bit images of the shape that the net was made for.
        """
        check_images(images, self.name, shape=(self.channels, self.size, self.size))

        return self.embed(images.to(self.weight_0.device).float() / 127.5 - 1)

    def embed(self, images: Tensor) -> Tensor:
        r"""Maps images in [−1, 1] to features, differentiably.

        Where a channel is constant its deviation has no slope, and torch takes zero for it.

        Arguments:
            images: The images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features, with shape :math:`(n, 64)`.
        """
        std, mean = torch.std_mean(self.maps(images)[-1], dim=(2, 3), correction=0)
        return torch.cat((mean, std), dim=1)

    def maps(self, x: Tensor) -> list[Tensor]:
        r"""The channels of every layer, differentiable with respect to the images.

        Arguments:
            x: Images in [−1, 1], with shape :math:`(n, C, H, W)`.

        Returns:
            The outputs :math:`h_1, \dots, h_L`, with shapes :math:`(n, c_l, H_l, W_l)`.
        """
        found = []

        for i in range(self.depth):
            weight, bias = getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")
            x = F.conv2d(x, weight, bias, stride=min(i + 1, 2), padding=1).relu()
            found.append(x)

        return found


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    unit = torch.rand(shape, generator=generator, dtype=torch.float64)

    return ((2 * unit - 1) * bound).float()
