r"""Everything that goes into a call of a denoiser and may want a gradient.

A rollout whose calls are repeated later, one at a time, must know which tensors its samples depend
on: parameters, buffers, tensors that modules keep as attributes (the weight of guidance, the null
conditions), and the conditions of the call. They are looked up here, once a rollout. Later the
graph of every repeated call is compared with them, so that a tensor that was overlooked is an
error, never a gradient that is silently missing.
"""

__all__ = ["Inputs"]

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from genflow.errors import UserError

_OWN = {"_parameters", "_buffers", "_modules"}


class Inputs:
    """The tensors that denoisers and conditions hold.

    Args:
        roots: Modules, tensors, and mappings and lists of them.

    Attributes:
        wanted: The tensors that require gradients, each once.

    Raises:
        UserError: If a batch normalisation is in training mode: repeating its call would change
            its statistics a second time.
    """

    def __init__(self, *roots: Any) -> None:
        self._tensors: dict[int, Tensor] = {}
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self._seen: set[int] = set()
        self._read(roots)
        self.wanted = [t for t in self._tensors.values() if t.requires_grad]
        self._versions: list[tuple[Tensor, int]] = []

    def _read(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensors[id(value)] = value
        elif isinstance(value, (nn.Module, Mapping, list, tuple, set)):
            if id(value) in self._seen:
                return
            self._seen.add(id(value))
            if isinstance(value, nn.Module):
                self._read_module(value)
            else:
                for v in value.values() if isinstance(value, Mapping) else value:
                    self._read(v)

    def _read_module(self, module: nn.Module) -> None:
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            raise UserError(
                "the denoiser has batch normalisation in training mode, and a gradient that "
                "repeats calls would change its statistics twice: call eval() on it, or use "
                "gradient='direct'."
            )

        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    self._tensors[id(tensor)] = tensor
                    self._places.append((held, name, tensor))

        for child in module._modules.values():
            if child is not None:
                self._read(child)

        for name, value in vars(module).items():
            if name not in _OWN and value is not None:
                self._read(value)

    def mark(self) -> None:
        """Remembers the values that the tensors have now."""

        kept = [*self._parameters(), *self.wanted]
        self._versions = [(t, t._version) for t in kept if not t.is_inference()]

    def _parameters(self) -> Iterator[Tensor]:
        return (t for _, _, t in self._places if isinstance(t, nn.Parameter))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """A context in which modules hold the tensors that they held at the start.

        They do not where `torch.func.functional_call` gave them others for the rollout alone.

        Raises:
            UserError: If a tensor was changed in place since `mark`.
        """

        for tensor, version in self._versions:
            if tensor._version != version:
                raise UserError(
                    f"{_described(tensor)} was changed in place between sampling and the "
                    "backward pass, which would repeat calls with other numbers: step the "
                    "optimiser after backward()."
                )

        moved = [(held, name, held.get(name)) for held, name, t in self._places]
        moved = [m for m, (_, _, t) in zip(moved, self._places, strict=True) if m[2] is not t]

        if moved:
            for held, name, tensor in self._places:
                held[name] = tensor
        try:
            yield
        finally:
            for held, name, tensor in moved:
                held[name] = tensor

    def check(self, outputs: Iterable[Tensor], leaves: Iterable[Tensor], policy: str) -> None:
        """Compares the graph of a repeated call with the tensors that are known.

        Args:
            outputs: What the call returned.
            leaves: Further tensors that the graph may end in.
            policy: The name of the policy, for the message.

        Raises:
            UserError: If the graph ends in a tensor that is not known.
        """

        known = {id(t) for t in self.wanted} | {id(t) for t in leaves}
        ends = [t.grad_fn for t in self.wanted if t.grad_fn is not None]
        stack: list[Node] = [t.grad_fn for t in outputs if t.grad_fn is not None]
        seen = {*ends, *stack}

        while stack:
            node = stack.pop()
            for other, _ in node.next_functions:
                if other is None or other in seen:
                    continue
                seen.add(other)
                leaf = getattr(other, "variable", None)
                if leaf is None:
                    stack.append(other)
                elif id(leaf) not in known:
                    raise UserError(
                        f"the denoiser uses {_described(leaf)} that requires gradients, but it is "
                        f"no parameter, buffer or attribute of it and no condition, so gradient "
                        f"'{policy}' would leave it out: register it on the denoiser, detach it, "
                        "or use gradient='direct'."
                    )


def _described(tensor: Tensor) -> str:
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
    return f"a {kind} with shape {tuple(tensor.shape)}"
