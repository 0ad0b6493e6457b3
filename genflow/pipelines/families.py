r"""The networks of diffusers, a row a family, behind one call ``net(x, time, **conditions)``.

A denoiser wants a tensor shaped like the state and knows conditions by name; the families differ
in what they call their arguments, in what comes out beside the answer, and in how latents are laid
out. A row of the table says it all:

====================== =============================================== =======================
family                 conditions                                      remarks
====================== =============================================== =======================
UNet2DModel            ``label`` or ``embedding`` if it has classes    last class: none
DiTTransformer2DModel  ``label`` or ``embedding``                      first half: the answer
UNet2DConditionModel   ``prompt_embeds``; on SDXL also                 SD 1, 2 and XL
                       ``pooled_prompt_embeds``, ``time_ids``
SD3Transformer2DModel  ``prompt_embeds``, ``pooled_prompt_embeds``
FluxTransformer2DModel as SD3; ``embedded_guidance`` if it has one     2 × 2 pixels a token
====================== =============================================== =======================

The last class of a `UNet2DModel`, and class 1000 of an ImageNet DiT, stand for no class. A
condition that a network does not know is refused, and so is one that it lacks.
"""

__all__ = ["FAMILIES", "Family", "Labelled", "Prompted", "family_of"]

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import UserError, nearest
from genflow.nn import Net, altered, faded
from genflow.nn.blocks import Memory
from genflow.pipelines.kinds import Config


def _refuse(given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if not known:
            raise UserError(f"condition is '{name}', but this network takes no conditions.")
        if name not in known:
            raise UserError(f"condition is '{name}'{nearest(name, known)}")


class Labelled(Net):
    """A network with class labels, or without conditions."""

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        embedding: Tensor | None = None,
        **unknown: Any,
    ) -> Tensor:
        r"""See `genflow.nn.Net`; unknown conditions are refused."""

        _refuse(unknown, () if self.classes is None else ("label", "embedding"))
        return super().forward(x, time, label, embedding)


class Prompted(nn.Module):
    r"""A network that is conditioned on embeddings of text.

    Args:
        model: A model of diffusers.

    Attributes:
        names: The conditions, all of which it needs.

    Raises:
        UserError: If the family is unknown, or the config asks for conditions that are not.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()

        family = family_of(model)

        for key, allowed in family.only.items():
            if model.config.get(key) not in allowed:
                raise UserError(
                    f"the {type(model).__name__} has {key} {model.config[key]!r} in its config: "
                    f"{' and '.join(map(repr, allowed))} are known here."
                )

        self.model = model
        self.names = family.names(model.config)
        self._call = family.call

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        r"""Calls the model.

        Args:
            x: The input, with shape (B, c, h, w).
            time: What the network is told about time, with shape () or (B).
            cond: The conditions in ``names``, each with B rows.

        Returns:
            The output, with shape (B, c, h, w).

        Raises:
            UserError: If a condition is unknown or missing.
        """

        if cond.keys() != set(self.names):
            _refuse(cond, self.names)
            lacking = next(n for n in self.names if n not in cond)
            raise UserError(
                f"condition '{lacking}' is missing: this network needs {', '.join(self.names)}."
            )

        return self._call(self.model, x, time, **cond)

    def faded(self, skips: Sequence[float]) -> AbstractContextManager[None]:
        """A context in which skip connections are multiplied; see `genflow.nn.faded`."""

        return faded(self.model, skips)

    def altered(self, modes: Mapping[str, str], memory: Memory) -> AbstractContextManager[None]:
        """A context in which blocks are kept, dropped or reused; see `genflow.nn.altered`."""

        return altered(self.model, modes, memory)


# ---------------------------------------------------------------------------------- calls


def _unet(
    model: nn.Module, x: Tensor, time: Tensor, prompt_embeds: Tensor, **added: Tensor
) -> Tensor:
    more = None

    if added:
        more = {"text_embeds": added["pooled_prompt_embeds"], "time_ids": added["time_ids"]}

    return model(
        x, time, encoder_hidden_states=prompt_embeds, added_cond_kwargs=more, return_dict=False
    )[0]


def _sd3(
    model: nn.Module,
    x: Tensor,
    time: Tensor,
    prompt_embeds: Tensor,
    pooled_prompt_embeds: Tensor,
) -> Tensor:
    return model(
        hidden_states=x,
        timestep=time.expand(len(x)),
        encoder_hidden_states=prompt_embeds,
        pooled_projections=pooled_prompt_embeds,
        return_dict=False,
    )[0]


def _flux(
    model: nn.Module,
    x: Tensor,
    time: Tensor,
    prompt_embeds: Tensor,
    pooled_prompt_embeds: Tensor,
    embedded_guidance: Tensor | None = None,
) -> Tensor:
    """Squares of 2 × 2 pixels go in as tokens; a token's place is its row and its column."""

    B, c, h, w = x.shape
    rows, columns = h // 2, w // 2
    tokens = x.view(B, c, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    place = torch.cartesian_prod(
        torch.zeros(1, device=x.device),
        torch.arange(rows, dtype=torch.float32, device=x.device),
        torch.arange(columns, dtype=torch.float32, device=x.device),
    )
    out = model(
        hidden_states=tokens.reshape(B, rows * columns, 4 * c),
        timestep=time.expand(B) / 1000,
        guidance=embedded_guidance,
        pooled_projections=pooled_prompt_embeds,
        encoder_hidden_states=prompt_embeds,
        txt_ids=place.new_zeros(prompt_embeds.shape[1], 3),
        img_ids=place,
        return_dict=False,
    )[0]
    return out.view(B, rows, columns, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


# ---------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Family:
    """A row of the table: what differs between the networks of diffusers.

    Attributes:
        net: Puts the model behind the one call.
        channels: The channels of the state, read from the config.
        patch: The side of the squares that the network takes for one token, likewise.
        call: How the model is called, for `Prompted`.
        names: Its conditions, read from the config, for `Prompted`.
        only: Keys of the config, and the values that are known here.
    """

    net: Callable[[nn.Module], nn.Module]
    channels: Callable[[Config], int] = lambda config: config["in_channels"]
    patch: Callable[[Config], int] = lambda config: config.get("patch_size") or 1
    call: Callable[..., Tensor] | None = None
    names: Callable[[Config], tuple[str, ...]] = lambda config: ()
    only: Mapping[str, tuple[Any, ...]] | None = None


_TEXT = ("prompt_embeds", "pooled_prompt_embeds")


def _unet_names(config: Config) -> tuple[str, ...]:
    large = config.get("addition_embed_type") == "text_time"
    return (*_TEXT, "time_ids") if large else _TEXT[:1]


def _flux_names(config: Config) -> tuple[str, ...]:
    return (*_TEXT, "embedded_guidance") if config.get("guidance_embeds") else _TEXT


FAMILIES: dict[str, Family] = {
    "UNet2DModel": Family(Labelled),
    "DiTTransformer2DModel": Family(Labelled),
    "UNet2DConditionModel": Family(
        Prompted,
        channels=lambda config: config["out_channels"],
        call=_unet,
        names=_unet_names,
        only={
            "addition_embed_type": (None, "text_time"),
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "encoder_hid_dim_type": (None,),
            "time_cond_proj_dim": (None,),
        },
    ),
    "SD3Transformer2DModel": Family(Prompted, call=_sd3, names=lambda config: _TEXT, only={}),
    "FluxTransformer2DModel": Family(
        Prompted,
        channels=lambda config: config["in_channels"] // 4,
        patch=lambda config: 2,
        call=_flux,
        names=_flux_names,
        only={},
    ),
}
"""The networks of diffusers that are known here, by class."""


def family_of(model: nn.Module) -> Family:
    """The row of a model.

    Raises:
        UserError: If its class is unknown.
    """

    name = type(model).__name__

    if name not in FAMILIES:
        raise UserError(f"the network is a {name}: {', '.join(FAMILIES)} are known here.")

    return FAMILIES[name]
