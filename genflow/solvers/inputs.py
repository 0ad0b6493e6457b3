r"""Everything that goes into the calls of a rollout and may want a gradient.

Calls that are repeated later, one at a time, need to know which tensors they depend on:
parameters, buffers, tensors that modules keep as attributes (the weight of guidance, its null
conditions), and the conditions of the rollout. They are looked up here, once a rollout. The graph
of every repeated call is then compared with them, so that a tensor that was overlooked is an
error, never a gradient that is silently missing.

A tensor that came out of a computation is cut off from it while calls are repeated: they see a
leaf with its values. What lies behind, a parameter of the same network perhaps, is differentiated
once, by autograd, and not with every call.
"""

__all__ = ["Inputs"]

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from genflow.errors import UserError

_OWN = ("_parameters", "_buffers", "_modules")


class Inputs:
    """The tensors that modules and conditions hold.

    Args:
        module: The module whose calls are repeated.
        cond: Named conditions: tensors, and mappings and lists of them.

    Attributes:
        wanted: The tensors that require gradients, each once.
        leaves: What repeated calls see in their places.
        cond: The conditions as repeated calls see them.

    Raises:
        UserError: If a batch normalisation is in training mode: repeating its call would change
            its statistics a second time.
    """

    def __init__(self, module: nn.Module, cond: Mapping[str, Any]) -> None:
        self.wanted: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self._known: dict[int, tuple[Any, Any]] = {}
        self._places: list[tuple[dict[str, Any], str, Any]] = []
        self._fixed: list[Tensor] = []
        self._versions: list[tuple[Tensor, int]] = []
        self.cond = self._cut(dict(cond))
        self._cut(module)

    def _cut(self, value: Any) -> Any:
        """A value with leaves in the place of tensors that were computed."""

        if not isinstance(value, (Tensor, nn.Module, Mapping, list, tuple)):
            return value

        key = id(value)

        if key not in self._known:
            self._known[key] = value, value
            if isinstance(value, Tensor):
                self._known[key] = value, self._leaf(value)
            elif isinstance(value, nn.Module):
                self._read(value)
            else:
                self._known[key] = value, self._rebuilt(value)

        return self._known[key][1]

    def _leaf(self, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor

        leaf = tensor if tensor.is_leaf else tensor.detach().requires_grad_()
        self.wanted.append(tensor)
        self.leaves.append(leaf)
        return leaf

    def _rebuilt(self, value: Any) -> Any:
        old = list(value.values() if isinstance(value, Mapping) else value)
        new = [self._cut(v) for v in old]

        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        if isinstance(value, Mapping):
            return dict(zip(value, new, strict=True))

        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)

    def _read(self, module: nn.Module) -> None:
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats:
            raise UserError(
                "the denoiser has batch normalisation in training mode, and a gradient that "
                "repeats calls would change its statistics twice: call eval() on it, or use "
                "gradient='direct'."
            )

        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    self._places.append((held, name, self._cut(tensor)))
                    if isinstance(tensor, nn.Parameter):
                        self._fixed.append(tensor)

        for child in module._modules.values():
            self._cut(child)

        for name, value in list(vars(module).items()):
            if name not in _OWN:
                new = self._cut(value)
                if new is not value or isinstance(value, Tensor):
                    self._places.append((vars(module), name, new))

    def mark(self) -> None:
        """Remembers the values that parameters and wanted tensors have now."""

        kept = {id(t): t for t in (*self._fixed, *self.wanted) if not t.is_inference()}
        self._versions = [(t, t._version) for t in kept.values()]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """A context in which modules hold what repeated calls are to see.

        That is what they held at the start, with leaves in the place of computed tensors.
        `torch.func.functional_call` gives modules other tensors for the rollout alone.

        Raises:
            UserError: If a tensor was changed in place since `mark`.
        """

        for tensor, version in self._versions:
            if tensor._version != version:
                raise UserError(
                    f"a {_described(tensor)} was changed in place between sampling and the "
                    "backward pass, which would repeat calls with other numbers: step the "
                    "optimiser after backward()."
                )

        moved = [(held, name, held.get(name), new) for held, name, new in self._places]
        moved = [m for m in moved if m[2] is not m[3]]

        for held, name, _, new in moved:
            held[name] = new
        try:
            yield
        finally:
            for held, name, old, _ in moved:
                held[name] = old

    def check(self, outputs: Iterable[Tensor], others: Iterable[Tensor], policy: str) -> None:
        """Compares the graph of a repeated call with what is known.

        Args:
            outputs: What the call returned.
            others: Further tensors that the graph may end in.
            policy: The name of the policy, for the message.

        Raises:
            UserError: If the graph ends in a tensor that is not known.
        """

        known = {id(t) for t in (*self.leaves, *others)}
        stack: list[Node] = [t.grad_fn for t in outputs if t.grad_fn is not None]
        seen = set(stack)

        while stack:
            for node, _ in stack.pop().next_functions:
                if node is None or node in seen:
                    continue
                seen.add(node)
                leaf = getattr(node, "variable", None)
                if leaf is None:
                    stack.append(node)
                elif id(leaf) not in known:
                    raise UserError(
                        f"the denoiser uses a {_described(leaf)} that requires gradients, but it "
                        "is no parameter, buffer or attribute of it and no condition, so gradient "
                        f"'{policy}' would leave it out: register it on the denoiser, detach it, "
                        "or use gradient='direct'."
                    )


def _described(tensor: Tensor) -> str:
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
    return f"{kind} with shape {tuple(tensor.shape)}"
