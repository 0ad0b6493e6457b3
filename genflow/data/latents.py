"""Latents of images, cached on disk, so that training never runs the autoencoder.

The store (see `genflow.data.shards`) is made by ``genflow encode``. The autoencoder lies beside
the latents, in the folder ``vae``: a pipeline that is trained on them takes it along.
"""

__all__ = ["LatentManifest", "LatentStore", "Latents"]

from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any, ClassVar

from genflow.data.base import DataModule
from genflow.data.examples import Examples
from genflow.data.shards import Manifest, Store
from genflow.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LatentManifest(Manifest):
    """What a store of latents says about itself.

    Attributes:
        codec: What made them: the fingerprint of the autoencoder, and the shape of an image.
        data: What they were made of, in words.
    """

    NOUN: ClassVar[str] = "latents"

    codec: dict[str, Any] = field(default_factory=dict)
    data: str = ""


class LatentStore(Store):
    """The latents of a folder, read when they are asked for."""

    RECORD = LatentManifest


class Latents(DataModule):
    """Latents at unit scale, as ``genflow encode`` caches them.

    Args:
        root: The folder of the store.
        **options: batch_size, workers, seed and validation, as in `DataModule`; flip is refused,
            since a mirrored latent is not the latent of a mirrored image.

    Raises:
        UserError: If flip is asked for; on loading, if the store cannot be used.
    """

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        self.root = root

        if self.flip:
            raise UserError(
                "flip is True, but a mirrored latent is not the latent of a mirrored image: set "
                "it to false."
            )

    @property
    def title(self) -> str:
        """See `DataModule.title`."""

        return f"latents of {LatentManifest.load(self.root).data}"

    @property
    def vae(self) -> Path:
        """The folder of the autoencoder."""

        return Path(self.root) / "vae"

    def load(self) -> Examples:
        """See `DataModule.load`."""

        return LatentStore(self.root)
