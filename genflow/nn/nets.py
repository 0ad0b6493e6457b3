"""The networks: diffusers' U-Net and DiT, and a small MLP, behind one call.

A denoiser calls its network as ``net(x, time, label=None)`` and wants a tensor shaped like ``x``.
The networks of diffusers answer to other names, one for each family; `Net` is the door between the
two, and a table says how each family is called. The wrapped model stays a plain diffusers model:
its weights and its config are saved and loaded by diffusers, with or without genflow.

Class labels run from 0 to ``classes − 1``; the label ``classes`` means "no class", and is what a
conditional network is given when it is trained or called without one. Behind a label stands a row
of a table, or one of each table where every block of a network has its own; such rows may be given
instead of the label (see `genflow.nn.rows`). A network that is trained on augmented images is told
how, as ``net(x, time, label, augment=a)``; without ``a`` it takes its image to be as it is (see
`genflow.nn.labels`).
"""

__all__ = ["MLP", "DiT", "Net", "UNet", "VectorMLP"]

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

from diffusers import ConfigMixin, DiTTransformer2DModel, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import LabelEmbedding, TimestepEmbedding, Timesteps
import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.nn.blocks import Memory, altered
from genflow.nn.labels import AugmentedDiT, AugmentedUNet, Labels
from genflow.nn.rows import tables
from genflow.nn.skips import faded


class VectorMLP(ModelMixin, ConfigMixin):
    r"""A residual multilayer perceptron for vectors, or for small events that are flattened.

    Args:
        features: The number d of features.
        width: The number of hidden units.
        depth: The number of residual blocks, 1 or more.
        num_class_embeds: The number of classes with the null class, or None.
        augment: The number of features of an augmentation's label; 0 if there is none.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        features: int = 2,
        width: int = 128,
        depth: int = 3,
        num_class_embeds: int | None = None,
        augment: int = 0,
    ) -> None:
        super().__init__()

        self.frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed = TimestepEmbedding(width, width)
        self.classes = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        if augment:
            self.classes = Labels(self.classes, augment, width)
        self.enter = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, features))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        r"""Maps vectors with shape (B, d) at times with shape () or (B) to vectors."""

        e = self.embed(self.frequencies(time.reshape(-1)).to(x.dtype))
        if self.classes is not None:
            e = e + self.classes(label)
        h = self.enter(x) + e
        for block in self.blocks:
            h = h + block(h + e)
        return self.leave(h)


def _call_unet(model: nn.Module, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
    return model(x, time, class_labels=label, return_dict=False)[0]


def _call_dit(model: nn.Module, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
    time = time.expand(len(x))
    out = model(x, timestep=time, class_labels=label, return_dict=False)[0]
    return out[:, : x.shape[1]]


def _call_vector(model: nn.Module, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
    return model(x.flatten(1), time, label).view_as(x)


_CALLS: dict[str, Callable[..., Tensor]] = {
    "UNet2DModel": _call_unet,
    "DiTTransformer2DModel": _call_dit,
    "VectorMLP": _call_vector,
    "AugmentedUNet": _call_unet,
    "AugmentedDiT": _call_dit,
}


class Net(nn.Module):
    r"""A model of diffusers, called as ``net(x, time, label=None, embedding=None, augment=None)``.

    Args:
        model: A `UNet2DModel`, a `DiTTransformer2DModel`, one of their augmented kinds, or a
            `VectorMLP`.

    Attributes:
        classes: The number of classes without the null class, or None.
        augment: The number of features of an augmentation's label, 0 if it takes none.

    Raises:
        UserError: If the model is of another class.
    """

    def __init__(self, model: ModelMixin) -> None:
        super().__init__()

        name = type(model).__name__

        if name not in _CALLS:
            raise UserError(f"model is a {name}: {', '.join(_CALLS)} are known here.")

        for part in model.modules():
            if isinstance(part, LabelEmbedding):
                part.dropout_prob = 0.0  # labels are dropped by training alone, and only once

        self.model = model
        self._call = _CALLS[name]
        config = model.config
        count = config.get("num_class_embeds") or (
            config["num_embeds_ada_norm"] + 1 if "num_embeds_ada_norm" in config else None
        )
        self.classes = None if count is None else count - 1
        self.augment = config.get("augment", 0)
        self._rows = [] if self.classes is None else tables(model)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one event: (C, H, W) or (d,)."""

        config = self.model.config
        if isinstance(self.model, VectorMLP):
            return (config["features"],)
        size = config["sample_size"]
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return (config["in_channels"], *sides)

    def faded(self, skips: Sequence[float]) -> AbstractContextManager[None]:
        """A context in which the skip connections of a U-Net are multiplied by factors.

        See [`genflow.nn.skips`][genflow.nn.skips.faded].
        """

        return faded(self.model, skips)

    def altered(self, modes: Mapping[str, str], memory: Memory) -> AbstractContextManager[None]:
        """A context of one call, in which blocks are kept, dropped or reused.

        See [`genflow.nn.blocks`][genflow.nn.blocks.altered].
        """

        return altered(self.model, modes, memory)

    def embed(self, label: Tensor) -> Tensor:
        """What stands behind class labels, the null class among them.

        Args:
            label: Class labels, with shape (B).

        Returns:
            Embeddings, with shape (B, R, E): a row of each of the R tables of the network.

        Raises:
            UserError: If the model has no classes.
        """

        if self.classes is None:
            raise UserError("label is given, but this network was built without classes.")

        return torch.stack([table(label) for table in self._rows], dim=1)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        embedding: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        r"""Calls the model.

        Args:
            x: The input, with shape (B, \*).
            time: What the network is told about time, with shape () or (B).
            label: Class labels, with shape (B); the null class if None and the model has classes.
            embedding: Embeddings in place of labels, with shape (B, R, E), as `embed` makes them.
            augment: How the images were augmented, with shape (B, features); not at all if None.

        Returns:
            The output, with shape (B, \*).

        Raises:
            UserError: If labels or embeddings are given to a model without classes, or both of
                them, or embeddings have another shape, or augmentations are given to a model that
                was built without their features.
        """

        if self.classes is None:
            if label is not None or embedding is not None:
                name = "embedding" if label is None else "label"
                raise UserError(f"{name} is given, but this network was built without classes.")
        elif embedding is not None:
            label = self._checked(label, embedding)
        elif label is None:
            label = torch.full((len(x),), self.classes, device=x.device)

        if not self.augment:
            if augment is not None:
                raise UserError(
                    "augment is given, but this network was built without its features: build it "
                    f"with augment={augment.shape[-1]}."
                )
            return self._call(self.model, x, time, label)

        if augment is None:
            augment = x.new_zeros(len(x), self.augment)

        return self._call(self.model, x, time, (label, augment))

    def _checked(self, label: Tensor | None, embedding: Tensor) -> Tensor:
        """Embeddings that can be handed through."""

        if label is not None:
            raise UserError("label and embedding are both given: give one of the two.")

        R, E = len(self._rows), self._rows[0].embedding_dim

        if embedding.shape[1:] != (R, E) or not embedding.is_floating_point():
            raise UserError(
                f"embedding has shape {tuple(embedding.shape)} and dtype {embedding.dtype}: this "
                f"network takes (B, {R}, {E}) in floating point."
            )

        return embedding


class UNet(Net):
    """diffusers' `UNet2DModel`, with the few choices that matter.

    Args:
        size: The side of the images in pixels.
        channels: Their number of channels.
        widths: The channels of each level; each level but the first halves the side.
        layers: Residual blocks a level.
        attention: Which levels have self-attention: one flag a level, or the sides in pixels.
        classes: The number of classes, or None.
        dropout: The dropout rate, in [0, 1).
        groups: Groups of the normalisation; must divide every width.
        augment: The number of features of an augmentation's label, 9 for `Augmentation`; 0 if the
            network is to know nothing of augmentations.

    Raises:
        UserError: If the widths cannot be built.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 256),
        layers: int = 2,
        attention: Sequence[int] = (16,),
        classes: int | None = None,
        dropout: float = 0.0,
        groups: int = 32,
        augment: int = 0,
    ) -> None:
        halvings = len(widths) - 1

        if not widths or any(w % groups for w in widths):
            raise UserError(
                f"widths are {tuple(widths)}: each must be a multiple of groups {groups}."
            )
        if size % 2**halvings:
            raise UserError(
                f"size is {size}: {len(widths)} levels need a multiple of {2**halvings}; drop a "
                "width or resize the images."
            )

        sides = [size // 2**i for i in range(len(widths))]
        down = ["AttnDownBlock2D" if s in attention else "DownBlock2D" for s in sides]
        up = ["AttnUpBlock2D" if s in attention else "UpBlock2D" for s in reversed(sides)]

        kind = partial(AugmentedUNet, augment=augment) if augment else UNet2DModel

        super().__init__(
            kind(
                sample_size=size,
                in_channels=channels,
                out_channels=channels,
                block_out_channels=tuple(widths),
                layers_per_block=layers,
                down_block_types=tuple(down),
                up_block_types=tuple(up),
                norm_num_groups=groups,
                dropout=dropout,
                attention_head_dim=min(64, min(widths)),
                num_class_embeds=None if classes is None else classes + 1,
            )
        )


class DiT(Net):
    """diffusers' `DiTTransformer2DModel`, a class-conditional transformer.

    Args:
        size: The side of the images or latents.
        channels: Their number of channels.
        patch: The side of a patch.
        heads: Attention heads.
        head_width: Features a head.
        depth: The number of blocks.
        classes: The number of classes.
        dropout: The dropout rate, in [0, 1).
        augment: As in `UNet`.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 4,
        patch: int = 2,
        heads: int = 6,
        head_width: int = 64,
        depth: int = 12,
        classes: int = 1000,
        dropout: float = 0.0,
        augment: int = 0,
    ) -> None:
        kind = partial(AugmentedDiT, augment=augment) if augment else DiTTransformer2DModel

        super().__init__(
            kind(
                sample_size=size,
                in_channels=channels,
                out_channels=channels,
                patch_size=patch,
                num_attention_heads=heads,
                attention_head_dim=head_width,
                num_layers=depth,
                num_embeds_ada_norm=classes,
                dropout=dropout,
            )
        )


class MLP(Net):
    """A `VectorMLP` for vectors with d features.

    Args:
        features: The number of features.
        width: The number of hidden units.
        depth: The number of residual blocks.
        classes: The number of classes, or None.
        augment: The number of features of an augmentation's label; 0 if there is none.
    """

    def __init__(
        self,
        features: int = 2,
        width: int = 128,
        depth: int = 3,
        classes: int | None = None,
        augment: int = 0,
    ) -> None:
        super().__init__(
            VectorMLP(
                features=features,
                width=width,
                depth=depth,
                num_class_embeds=None if classes is None else classes + 1,
                augment=augment,
            )
        )
