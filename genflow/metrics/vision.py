r"""``dinov2`` and ``clip``: large vision networks of the library transformers.

Inception was trained to name a thousand classes and looks away from the rest of a picture; the
two networks here follow people's judgement of generated photographs better. What is read:

* ``dinov2``: the class token after the last norm (1,024 numbers of the large model);
* ``clip``: the image embedding divided by its length (768 numbers), on which CMMD is defined.

The whole image is brought to the side that the network's ``preprocessor_config.json`` crops to,
by torch's bicubic filter with antialiasing, is clipped, and normalised by the mean and deviation
of that file; nothing is cut off. Grey images are repeated to three channels.

The weights come from a folder that the caller gives, the cache folder's ``dinov2`` or ``clip``,
or the hub's own cache, in this order; only safetensors are read. What is *not* assumed: a model
of one size, whose numbers are compared with published ones at one's own care; the folder's name is
not kept, the sha256 of all its weights is.

References:
    | Exposing flaws of generative model evaluation metrics (Stein et al., 2023)
    | https://arxiv.org/abs/2306.04675

    | Rethinking FID: Towards a Better Evaluation Metric for Image Generation
    | (Jayasumana et al., 2024)
    | https://arxiv.org/abs/2401.09603
"""

__all__ = ["VisionNet"]

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genflow.errors import UserError
from genflow.files import cache_folder
from genflow.metrics.inputs import check_images
from genflow.metrics.weights import Absent, digest_of, find

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
BATCH = 32  # images that are enlarged at once: bounds the memory, not the answer


@dataclass(frozen=True)
class Kind:
    """A family of networks: how its distances are called, where it lives, its class."""

    prefix: str
    hub: str
    cls: str


KINDS = {
    "dinov2": Kind("FD-DINOv2", "facebook/dinov2-large", "Dinov2Model"),
    "clip": Kind("FD-CLIP", "openai/clip-vit-large-patch14-336", "CLIPVisionModelWithProjection"),
}


class VisionNet(nn.Module):
    r"""A DINOv2 or CLIP image network as a feature.

    Arguments:
        name: "dinov2" or "clip".
        channels: The channels of the images, 1 or 3.
        weights: The folder of the network; None for the cache folder, then the hub's cache.

    Raises:
        Absent: If the folder or the library transformers is not there.
        UserError: If the folder holds something else, or the images have other channels.
    """

    def __init__(
        self, name: str, channels: int, weights: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__()

        if channels not in (1, 3):
            raise UserError(
                f"channels: {channels} is not 1 or 3; the feature '{name}' reads grey or colour "
                "images."
            )

        kind = KINDS[name]
        folder = _folder(name, kind, weights)
        self.name, self.prefix, self.channels = name, kind.prefix, channels
        self.side, mean, std = _processor(folder / PROCESSOR)
        self.net = _network(name, kind, folder)
        self.digest = digest_of(name, (w for _, w in sorted(self.net.state_dict().items())))
        self.resize = f"torch bicubic with antialiasing to {self.side} × {self.side}, not rounded"
        if channels == 1:
            self.resize += ", grey repeated to 3 channels"
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        r"""Maps images to features.

        Arguments:
            images: The 8-bit images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features in float32, with shape :math:`(n, d)`.

        Raises:
            UserError: If they are no 8-bit images of the channels that it was made for.
        """
        check_images(images, self.name, shape=(self.channels, *images.shape[2:]))

        return torch.cat([self._part(part) for part in images.split(BATCH)])

    def _part(self, images: Tensor) -> Tensor:
        x = images.to(self.mean.device).float() / 255
        size = (self.side, self.side)
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        out = self.net(pixel_values=(x.clamp(0, 1) - self.mean) / self.std)

        if self.name == "clip":
            return F.normalize(out.image_embeds, dim=1)
        return out.last_hidden_state[:, 0]


def _folder(name: str, kind: Kind, given: str | os.PathLike[str] | None) -> Path:
    """The folder of a network: the caller's, the cache folder's, or the hub cache's."""
    from huggingface_hub import try_to_load_from_cache

    own = cache_folder() / name
    snapshot = try_to_load_from_cache(kind.hub, CONFIG)

    if given is None and not own.exists() and isinstance(snapshot, str):
        own = Path(snapshot).parent

    source = f"https://huggingface.co/{kind.hub}"

    return find(name, (CONFIG, PROCESSOR, WEIGHTS), source, given=given, folder=own)


def _processor(file: Path) -> tuple[int, Tensor, Tensor]:
    """The side of the images, and the mean and deviation of their channels in [0, 1]."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        side = said.get("crop_size") or said["size"]
        if isinstance(side, dict):
            side = side.get("height") or side["shortest_edge"]
        mean, std = (torch.tensor(said[key]).float() for key in ("image_mean", "image_std"))
        return int(side), mean.view(3, 1, 1), std.view(3, 1, 1)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"'{file}' tells no size, image_mean and image_std ({error}); take the file that "
            "came with the network."
        ) from None


def _network(name: str, kind: Kind, folder: Path) -> nn.Module:
    """The network, every weight of it from the folder's safetensors."""
    try:
        import transformers
    except ImportError:
        raise Absent(
            f"feature '{name}': the library transformers is not there; "
            "pip install 'genflow[metrics]' brings it."
        ) from None

    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            if name == "clip" and hasattr(config, "vision_config"):  # of the whole CLIP
                width = config.projection_dim
                config = config.vision_config
                config.projection_dim = width
            net, found = getattr(transformers, kind.cls).from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"feature '{name}': '{folder}' cannot be read as {kind.cls} "
            f"({str(error).strip().splitlines()[0]}); take the files of {kind.hub}."
        ) from None

    if found["missing_keys"]:
        raise UserError(
            f"feature '{name}': '{folder}' lacks {len(found['missing_keys'])} weights of "
            f"{kind.cls}; take the files of {kind.hub}."
        )

    return net.float().requires_grad_(False).eval()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the report on the half of CLIP that reads text."""
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity_error()

    try:
        yield
    finally:
        log.set_verbosity(before)
