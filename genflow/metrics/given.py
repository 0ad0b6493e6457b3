r"""A feature handed in from Python: any network that maps a batch of images to rows of numbers.

.. math:: \phi = \text{module} \circ \text{preprocess}

What is *not* assumed: anything of the network but that it is deterministic and keeps its rows
apart (batch normalisation must be in evaluation mode, and is put there). The digest is that of its
weights and buffers; that two networks with the same weights and different code are told apart is
the caller's care, by their names.
"""

__all__ = ["Given"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.metrics.inputs import check_images
from genflow.metrics.weights import digest_of

RESERVED = ("inception", "fid", "dinov2", "clip", "genflow-small")


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255


class Given(nn.Module):
    r"""A network as a feature.

    Arguments:
        name: The name that reports print; its Fréchet distance is called "FD-" and this name.
        module: Maps the preprocessed batch to features, with shape :math:`(n, d)`.
        preprocess: Maps 8-bit images, with shape :math:`(n, C, H, W)`, to what the module reads,
            resizing included; by default they are divided by 255.
        resize: What the preprocessing does to sizes, in words, for the report.

    Raises:
        UserError: If the name is that of a published feature, or empty.

    Example:
        >>> phi = Given("flat", nn.Flatten())
        >>> phi(torch.zeros(5, 1, 4, 4, dtype=torch.uint8)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        preprocess: Callable[[Tensor], Tensor] = _unit,
        resize: str = "none",
    ) -> None:
        super().__init__()

        if not name or name.lower() in RESERVED:
            raise UserError(
                f"name: '{name}' is taken or empty; give the network a name of its own, a "
                "published one means published weights."
            )

        self.name, self.prefix, self.resize = name, f"FD-{name}", resize
        self.module, self.preprocess = module.eval(), preprocess
        state = sorted(module.state_dict().items())
        self.digest = digest_of(name, (weight.float() for _, weight in state))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        r"""Maps images to features.

        Arguments:
            images: The 8-bit images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features in float32, with shape :math:`(n, d)`.

        Raises:
            UserError: If the images are not 8-bit, or the module does not give a row an image.
        """
        check_images(images, self.name)

        weight = next(self.module.parameters(), None)
        x = images if weight is None else images.to(weight.device)
        out = self.module(self.preprocess(x))

        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(images):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"feature '{self.name}': gives {got} for {len(images)} images; its module must "
                "give one row an image, with shape (n, d)."
            )

        return out.float()
