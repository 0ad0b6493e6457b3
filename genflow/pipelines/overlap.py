"""Doing two things at once: sampling the next batch while the last one is decoded and written.

Two places where a job would wait are taken off its way. On a GPU the decoder of latents, and the
copy of images to the host, run on a second stream beside the sampler of the next batch (`behind`).
On the host images are encoded and written by a thread of their own (`Writer`), a few batches
behind; what encodes PNGs lets go of the interpreter's lock. Neither changes a number.
"""

__all__ = ["Writer", "behind", "check_stream"]

from collections.abc import Callable, Iterator
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from genflow.errors import UserError

T = TypeVar("T")


def check_stream(device: torch.device) -> None:
    """Refuses a device that has no second stream.

    Raises:
        UserError: If it is no GPU.
    """

    if device.type != "cuda":
        raise UserError(
            f"overlap is True and the device is {device}: a second stream needs a GPU, leave "
            "overlap out."
        )


def behind(
    states: Iterator[tuple[Tensor, T]], decode: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[tuple[Tensor, T]]:
    r"""Decodes each batch on a second stream of a GPU, while the next one is being made.

    Args:
        states: Batches of states with shape (B, \*), each with what goes with it.
        decode: What is done to states.
        device: The GPU.

    Yields:
        The decoded batches, on the host, each when the next one is on its way. Two batches are in
        flight, so memory for both steps is needed at once.

    Raises:
        UserError: If the device is no GPU.
    """

    check_stream(device)
    aside = torch.cuda.Stream(device)
    waiting: tuple[Tensor, torch.cuda.Event, T] | None = None

    for x, about in states:
        aside.wait_stream(torch.cuda.current_stream(device))

        with torch.cuda.stream(aside):
            y = decode(x)
            host = torch.empty(y.shape, dtype=y.dtype, pin_memory=True)
            host.copy_(y, non_blocking=True)
            done = torch.cuda.Event()
            done.record(aside)

        x.record_stream(aside)

        if waiting is not None:
            yield _arrived(*waiting)
        waiting = (host, done, about)

    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(host: Tensor, done: torch.cuda.Event, about: T) -> tuple[Tensor, T]:
    done.synchronize()
    return host, about


class Writer(Generic[T]):
    """A thread that stores what it is handed, in order.

    It is a context. On the way out everything that was handed over is stored, also if the context
    is left by an error; then the writer's own error, if there was one, is raised where the context
    stands. After an error nothing more is stored.

    Args:
        store: What is done with each item, in the thread.
        room: How many items may wait; handing over another one waits, so memory is bounded.

    Example:
        >>> with Writer(save) as write:
        ...     for batch in batches:
        ...         write(batch)
    """

    def __init__(self, store: Callable[[T], None], room: int = 2) -> None:
        self._store = store
        self._items: Queue[tuple[T] | None] = Queue(room)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="genflow-writer", daemon=True)

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is None:
                try:
                    self._store(*item)
                except BaseException as error:
                    self._error = error

    def __call__(self, item: T) -> None:
        """Hands an item over.

        Raises:
            BaseException: What the thread has met with, at an earlier item.
        """

        if self._error is not None:
            raise self._error

        self._items.put((item,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        self._items.put(None)
        self._thread.join()

        if self._error is not None and error is None:
            raise self._error
