r"""Keeping, dropping and reusing the residual blocks of diffusers' networks.

A residual block answers :math:`s(h) + b(h, t)`: a shortcut, which is the identity or a cheap map,
and a branch. Inside `altered` a block is

* *kept*: it runs in full, and its branch b is remembered,
* *dropped*: it answers :math:`s(h)`, or
* *reused*: it answers :math:`s(h) + b'` with b' the branch that was remembered.

====================== ============================ ==========================================
network                blocks                       the shortcut s
====================== ============================ ==========================================
UNet2DModel,           residual blocks, also those  resampling, a 1 × 1 convolution where the
UNet2DConditionModel   that resample                channels change, the output's scale
UNet2DModel            self-attention               the output's scale
UNet2DConditionModel   transformers (self- and      identity
                       cross-attention and MLP)
DiTTransformer2DModel  transformer blocks           identity
SD3, Flux              transformer blocks           identity, for both streams
====================== ============================ ==========================================

The skip connections of a U-Net are untouched, since every block still answers with a tensor of
the right shape. First and last layers, embeddings and plain resamplers cannot be left out.

PyTorch's hooks cannot keep a module from running, so the method ``forward`` is replaced on the
*instances*, and only while the context lasts: no module is exchanged, no weight and no key of the
state dict changes, whatever method stood there before is put back, and copies or pickles made
inside the context are those of a network that is not altered. Nothing is remembered in the
network: the memory is handed in, one a trajectory, and holds a branch for each pass of a call, so
that guidance in two passes keeps two.
"""

__all__ = ["Kind", "Memory", "altered", "blocks_of", "kind_of", "replaced"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
import torch
from torch import Tensor, nn

from genflow.errors import UserError, nearest

Memory = dict[tuple[str, int], list[Tensor]]
"""The branches of one network in one trajectory: (block, pass of the call) → a tensor a stream."""

MODES = ("keep", "drop", "reuse")


# ---------------------------------------------------------------------------------- kinds


class Kind(ABC):
    """How a class of blocks is taken apart into shortcut and branch."""

    @abstractmethod
    def shortcut(self, block: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
        """The streams that the branches are added to."""

    @abstractmethod
    def answer(self, block: nn.Module, streams: list[Tensor], args: Any, kwargs: Any) -> Any:
        """What the block returns for its streams with the branches added."""

    @abstractmethod
    def streams(self, block: nn.Module, answer: Any) -> list[Tensor]:
        """The streams of an answer."""

    def run(
        self, block: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, list[Tensor]]:
        """The answer of a full run, and the branches."""

        answer = forward(*args, **kwargs)
        pairs = zip(self.streams(block, answer), self.shortcut(block, args, kwargs), strict=True)
        return answer, [out - s for out, s in pairs]


def _input(args: Any, kwargs: Any, name: str = "hidden_states") -> Tensor:
    return args[0] if args else kwargs[name]


class _Residual(Kind):
    """``(shortcut(resample(h)) + branch) / scale``, where the branch ends in ``conv2``."""

    def shortcut(self, block: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
        h = _input(args, kwargs, "input_tensor")
        resample = block.upsample if block.upsample is not None else block.downsample
        h = h if resample is None else resample(h)
        return [h if block.conv_shortcut is None else block.conv_shortcut(h)]

    def answer(self, block: nn.Module, streams: list[Tensor], args: Any, kwargs: Any) -> Tensor:
        return _scaled(streams[0], block.output_scale_factor)

    def streams(self, block: nn.Module, answer: Tensor) -> list[Tensor]:
        return [answer * block.output_scale_factor]

    def run(
        self, block: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, list[Tensor]]:
        """The branch is read where it ends, which spares a second shortcut."""

        branch: list[Tensor] = []
        hook = block.conv2.register_forward_hook(lambda conv, given, out: branch.append(out))

        try:
            return forward(*args, **kwargs), branch
        finally:
            hook.remove()


class _Attention(Kind):
    """``(h + branch) / scale``: attention with its residual connection inside."""

    def shortcut(self, block: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
        return [_input(args, kwargs)]

    def answer(self, block: nn.Module, streams: list[Tensor], args: Any, kwargs: Any) -> Tensor:
        return _scaled(streams[0], block.rescale_output_factor)

    def streams(self, block: nn.Module, answer: Tensor) -> list[Tensor]:
        return [answer * block.rescale_output_factor]


class _Single(Kind):
    """``h + branch``."""

    def shortcut(self, block: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
        return [_input(args, kwargs)]

    def answer(self, block: nn.Module, streams: list[Tensor], args: Any, kwargs: Any) -> Any:
        return streams[0]

    def streams(self, block: nn.Module, answer: Any) -> list[Tensor]:
        return [answer]


class _Packed(_Single):
    """``h + branch`` in a record, or in a tuple where the caller asks for one."""

    def answer(self, block: nn.Module, streams: list[Tensor], args: Any, kwargs: Any) -> Any:
        if kwargs.get("return_dict", True):
            return Transformer2DModelOutput(sample=streams[0])
        return (streams[0],)

    def streams(self, block: nn.Module, answer: Any) -> list[Tensor]:
        return [answer[0]]


class _Double(Kind):
    """Two streams, text and image; the last block of SD3 hands the text on no more."""

    def shortcut(self, block: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
        h = _input(args, kwargs)
        words = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
        return [h] if getattr(block, "context_pre_only", False) else [words, h]

    def answer(self, block: nn.Module, streams: list[Tensor], args: Any, kwargs: Any) -> Any:
        return tuple(streams) if len(streams) == 2 else (None, streams[0])

    def streams(self, block: nn.Module, answer: Any) -> list[Tensor]:
        return [s for s in answer if s is not None]


def _scaled(h: Tensor, scale: float) -> Tensor:
    return h if scale == 1 else h / scale


_KINDS: dict[type[nn.Module], Kind] = {
    ResnetBlock2D: _Residual(),
    ResnetBlockCondNorm2D: _Residual(),
    Attention: _Attention(),
    Transformer2DModel: _Packed(),
    BasicTransformerBlock: _Single(),
    JointTransformerBlock: _Double(),
    FluxTransformerBlock: _Double(),
    FluxSingleTransformerBlock: _Double(),
}

_STAGES: dict[str, tuple[str, ...]] = {
    "UNet2DModel": ("down_blocks", "mid_block", "up_blocks"),
    "UNet2DConditionModel": ("down_blocks", "mid_block", "up_blocks"),
    "DiTTransformer2DModel": ("transformer_blocks",),
    "SD3Transformer2DModel": ("transformer_blocks",),
    "FluxTransformer2DModel": ("transformer_blocks", "single_transformer_blocks"),
}
"""Where the networks have their blocks, in the order in which they run."""


def kind_of(module: nn.Module) -> Kind | None:
    """How a module is taken apart; None if it is no block that can be left out."""

    if isinstance(module, Attention) and not module.residual_connection:
        return None
    if isinstance(module, Transformer2DModel) and not module.is_input_continuous:
        return None

    return next((k for cls, k in _KINDS.items() if isinstance(module, cls)), None)


# ---------------------------------------------------------------------------------- names


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that can be left out, by name, in the order in which they run.

    Args:
        model: A model of diffusers.

    Returns:
        A mapping from names, those of the state dict, to blocks; empty if there are none.
    """

    found: dict[str, nn.Module] = {}

    for attribute in _STAGES.get(type(model).__name__, ()):
        stages = getattr(model, attribute)
        many = isinstance(stages, nn.ModuleList)
        for i, stage in enumerate(stages if many else [stages]):
            name = f"{attribute}.{i}" if many else attribute
            inside = dict(_walk(stage, name))
            depth = len(name) + 1
            for key in sorted(inside, key=lambda key, depth=depth: _turn(key[depth:])):
                found[key] = inside[key]

    return found


def _walk(module: nn.Module | None, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The outermost blocks of a module."""

    if module is not None and kind_of(module) is not None:
        yield name, module
    elif module is not None:
        for key, child in module.named_children():
            yield from _walk(child, f"{name}.{key}")


def _turn(key: str) -> tuple[bool, int, bool, str]:
    """When a block of a U-Net's stage runs: in pairs of residual block and attention."""

    part, _, rest = key.partition(".")
    number = rest.split(".")[0]
    paired = part in ("resnets", "attentions")
    return not paired, int(number) if number.isdigit() else 0, part != "resnets", key


# ---------------------------------------------------------------------------------- contexts


class _Call:
    """What stands in for a block's ``forward``; copies and pickles are those of the original."""

    def __init__(self, forward: Callable[..., Any], call: Callable[..., Any]) -> None:
        self.forward = forward
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.forward, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _original, (self.forward,)


def _original(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


@contextmanager
def replaced(calls: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replaces the method ``forward`` of modules while the context lasts.

    Args:
        calls: Modules, and what is called in place of their ``forward`` as ``call(forward, args,
            kwargs)``, with the method that stood there before.
    """

    undo: list[tuple[nn.Module, Any]] = []

    try:
        for module, call in calls:
            undo.append((module, vars(module).get("forward")))
            module.forward = _Call(module.forward, call)
        yield
    finally:
        for module, before in reversed(undo):
            if before is None:
                del module.forward
            else:
                module.forward = before


@contextmanager
def altered(model: nn.Module, modes: Mapping[str, str], memory: Memory) -> Iterator[None]:
    """Keeps, drops or reuses blocks of a network while the context lasts.

    Enter it anew for every call of the network: the passes inside one context are told apart by
    their order.

    Args:
        model: A model of diffusers.
        modes: Names of blocks, and ``"keep"``, ``"drop"`` or ``"reuse"``; all others run as ever.
        memory: What a trajectory remembers; empty at its start.

    Raises:
        UserError: If the model has no such block, a mode is unknown, or the model is in training
            mode or checkpoints its activations; inside, if a block is reused that was not kept,
            or not for a batch of that shape.
    """

    blocks = blocks_of(model)
    _check(model, blocks, modes)
    calls = [
        (blocks[name], _altering(name, blocks[name], mode, memory)) for name, mode in modes.items()
    ]

    with replaced(calls):
        yield


def _check(model: nn.Module, blocks: Mapping[str, nn.Module], modes: Mapping[str, str]) -> None:
    if modes and not blocks:
        raise UserError(
            f"a {type(model).__name__} has no blocks to drop or reuse: leave change.drop and "
            f"change.reuse out, or use one of {', '.join(_STAGES)}."
        )

    for name, mode in modes.items():
        if name not in blocks:
            raise UserError(f"change names the block '{name}'{nearest(name, blocks)}")
        if mode not in MODES:
            raise UserError(f"block '{name}' has the mode '{mode}'{nearest(mode, MODES)}")

    if modes and any(blocks[name].training for name in modes):
        raise UserError(
            "blocks are dropped or reused in sampling alone, and the network is in training mode: "
            "call eval() first."
        )
    if modes and torch.is_grad_enabled() and model.is_gradient_checkpointing:
        raise UserError(
            "blocks cannot be dropped or reused under gradient checkpointing, which would run "
            "them again in full: call disable_gradient_checkpointing() first."
        )


def _altering(name: str, block: nn.Module, mode: str, memory: Memory) -> Callable[..., Any]:
    """What a block does in a mode."""

    kind, passes = kind_of(block), count()

    def call(forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        slot = name, next(passes)
        if mode == "keep":
            answer, memory[slot] = kind.run(block, forward, args, kwargs)
            return answer
        streams = kind.shortcut(block, args, kwargs)
        if mode == "reuse":
            streams = [s + b for s, b in zip(streams, _recall(memory, slot, streams), strict=True)]
        return kind.answer(block, streams, args, kwargs)

    return call


def _recall(memory: Memory, slot: tuple[str, int], streams: list[Tensor]) -> list[Tensor]:
    """The branches of a block; they fit its streams."""

    branches = memory.get(slot)

    if branches is None:
        raise UserError(
            f"block '{slot[0]}' is reused in pass {slot[1] + 1} of a call, and was not kept there "
            "before: keep it at an earlier call of the same trajectory."
        )
    for b, s in zip(branches, streams, strict=True):
        if b.shape != s.shape:
            raise UserError(
                f"block '{slot[0]}' is reused for shape {tuple(s.shape)}, and was kept for "
                f"{tuple(b.shape)}: guidance may not begin or end between the two."
            )

    return branches
