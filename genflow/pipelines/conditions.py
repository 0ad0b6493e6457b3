"""Conditions of a call: classes, prompts, and tensors by name.

A denoiser knows conditions by name, with a row for each sample. Here the words of a call become
such rows: a value may be one for all samples or one each, and a batch takes its part of it. What
stands for "no condition" is found in the same way: the null class, or the negative prompt, which
is a prompt like any other. Conditions that were found by optimisation are kept in a file.
"""

__all__ = [
    "Prompts",
    "asked",
    "load_conditions",
    "numbered",
    "part",
    "round_in",
    "rows",
    "save_conditions",
]

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.files import writing

Prompt = str | Sequence[str]


def asked(
    ask: int | Prompt | None, n: int | None, prompt: Prompt | None
) -> tuple[int | None, Prompt | None]:
    """The number of samples and the prompt of a call.

    Args:
        ask: The first argument of the call: the number, or the prompt, or None.
        n: The number, if given by name.
        prompt: The prompt, if given by name.

    Raises:
        UserError: If one of the two is given twice.
    """

    text = isinstance(ask, (str, Sequence))

    if ask is not None and (prompt if text else n) is not None:
        name = "prompt" if text else "n"
        raise UserError(f"{name} is given twice, first as {ask!r}: give it once.")

    n, prompt = (n, ask) if text else (n if ask is None else ask, prompt)

    if n is None and prompt is not None and not isinstance(prompt, str):
        n = len(prompt)

    return n, prompt


def part(name: str, value: Any, batch: slice, n: int) -> Any:
    """What a batch takes of a value: its rows if there is one for each of n samples, else all.

    Args:
        name: The name of the value, for messages.
        value: A list or a tensor with 1 or n rows, or anything else, which is one for all.
        batch: The samples of the batch.
        n: The number of all samples.

    Raises:
        UserError: If there are neither 1 nor n rows.
    """

    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    if isinstance(value, str) or not isinstance(value, (Sequence, Tensor)):
        return value
    if len(value) not in (1, n):
        raise UserError(
            f"{name} holds {len(value)} values for {n} samples: give one for all, or one each."
        )

    return value[batch] if len(value) == n else value


def rows(values: Mapping[str, Any], n: int, device: torch.device) -> dict[str, Tensor]:
    """Conditions as tensors with n rows each, on a device.

    Args:
        values: Tensors with 1 or n rows, or numbers.
        n: The number of rows.
        device: The device.

    Raises:
        UserError: If a tensor has neither 1 nor n rows.
    """

    found = {}

    for name, value in values.items():
        v = torch.as_tensor(part(name, value, slice(None), n), device=device)
        found[name] = v.expand(n, *v.shape[1:])

    return found


def numbered(label: Any, n: int, classes: int, names: Sequence[str] | None) -> Tensor:
    """Class numbers for n samples, with shape (n).

    Args:
        label: None: every class in turn. A class or its name: that class for all. A sequence of n
            of them: one each.
        n: The number of samples.
        classes: The number of classes.
        names: Their names, or None.

    Raises:
        UserError: If a label is out of range, or their number is not n.
    """

    if label is None:
        return torch.arange(n) % classes

    many = list(label) if isinstance(label, (list, tuple, Tensor)) else [label] * n
    numbers = [_number(v, classes, list(names or [])) for v in many]

    if len(numbers) != n:
        raise UserError(f"label holds {len(numbers)} classes for {n} samples: give one each.")

    return torch.tensor(numbers)


def round_in(text: str | None, n: int) -> list[str] | None:
    """Classes in text such as ``"0,3"`` or ``"ant,bee"``, gone round in for n samples.

    Args:
        text: The classes, with commas; None stays None, which is every class in turn.
        n: The number of samples.
    """

    if text is None:
        return None

    names = [part.strip() for part in text.split(",")]
    return [names[i % len(names)] for i in range(n)]


def _number(value: Any, classes: int, names: list[str]) -> int:
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        if value in names:
            return names.index(value)
        raise UserError(f"label is '{value}': the classes are {', '.join(names) or 'unnamed'}.")

    if not 0 <= int(value) < classes:
        raise UserError(f"label is {int(value)}: 0 … {classes - 1} are allowed.")

    return int(value)


def save_conditions(file: str | os.PathLike[str], values: Mapping[str, Tensor]) -> None:
    """Writes conditions by name to a safetensors file.

    Raises:
        UserError: If writing fails.
    """

    with writing(file) as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, part)


def load_conditions(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads conditions that `save_conditions` wrote.

    Raises:
        UserError: If the file is missing or damaged.

    Example:
        >>> pipe(16, conditions=load_conditions("out/invert/embedding.safetensors"))
    """

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"conditions '{file}' cannot be read ({reason}): give a safetensors file that genflow "
            "invert wrote."
        ) from None


class Prompts:
    """The text encoders of a stock pipeline: prompts in, named conditions out.

    Args:
        pipeline: The stock pipeline; its own ``encode_prompt`` does the work.
        encode: Calls it: (pipeline, prompts) → embeddings by name, a row a prompt.
        constants: Conditions that are the same for every prompt, by name: one row, or a number.

    Example:
        >>> pipe.condition(["a cat", "a dog"])["prompt_embeds"].shape
        torch.Size([2, 77, 768])
    """

    def __init__(
        self,
        pipeline: Any,
        encode: Callable[[Any, list[str]], dict[str, Tensor]],
        constants: Mapping[str, Any],
    ) -> None:
        self.pipeline = pipeline
        self.encode = encode
        self.constants = dict(constants)

    def to(self, *args: Any, **kwargs: Any) -> "Prompts":
        """Moves the text encoders, as `torch.nn.Module.to` does."""

        for module in self.pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of prompts.

        Args:
            prompts: The prompts.

        Returns:
            Tensors by name, with a row a prompt.
        """

        found = self.encode(self.pipeline, list(prompts))
        device = next(iter(found.values())).device
        return {**found, **rows(self.constants, len(prompts), device)}

    @torch.no_grad()
    def null(self, negatives: Sequence[str] | None = None) -> dict[str, Tensor]:
        """What stands for no condition: negative prompts, or nothing said.

        Args:
            negatives: The negative prompts; None is the empty prompt, or zeros for a model that
                was trained so (``force_zeros_for_empty_prompt`` of SDXL).

        Returns:
            The embeddings by name, with a row a negative prompt, or with one row.
        """

        if negatives is not None:
            return self.encode(self.pipeline, list(negatives))

        empty = self.encode(self.pipeline, [""])
        zeros = self.pipeline.config.get("force_zeros_for_empty_prompt", False)
        return {k: torch.zeros_like(v) for k, v in empty.items()} if zeros else empty
