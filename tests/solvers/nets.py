"""Small networks, and the gradients of everything that goes into a sampler of theirs."""

import torch
from torch import nn

from genflow.models import Clipped, Guided, Preconditioned


class Net(nn.Module):
    """Two weights, one of them used twice a call, and a condition that is used twice."""

    def __init__(self, dtype=torch.float64, width=8, dropout=0.0):
        super().__init__()
        self.enter = nn.Linear(2, width, dtype=dtype)
        self.twice = nn.Linear(width, width, dtype=dtype)
        self.leave = nn.Linear(width, 2, dtype=dtype)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, time, shift=None):
        """Called like any network of this package."""

        time = time.to(x.dtype) / 1000
        hidden = torch.tanh(self.enter(x) + (time[:, None] if time.ndim else time))
        hidden = torch.tanh(self.twice(self.drop(torch.tanh(self.twice(hidden)))))
        return self.leave(hidden) + (0 if shift is None else shift * torch.sin(shift) * x)


def wrapped(kind, path, dtype=torch.float64, prediction="v", **options):
    """A denoiser of a kind, around a fresh network."""

    inner = Preconditioned(Net(dtype, **options), path, prediction)
    weight = torch.tensor([1.7, 0.4, 2.5], dtype=dtype, requires_grad=True)
    null = torch.tensor([0.3, -0.2], dtype=dtype, requires_grad=True)

    return {
        "plain": lambda: inner,
        "guided": lambda: Guided(inner, weight, {"shift": null}),
        "interval": lambda: Guided(inner, weight, {"shift": null}, interval=(0.2, 0.8)),
        "auto": lambda: Guided(inner, weight, guide=Preconditioned(inner.net, path, "data")),
        "clipped": lambda: Clipped(Guided(inner, weight, {"shift": null}), -1.0, 1.0),
        "thresholded": lambda: Clipped(inner, quantile=0.9),
    }[kind]()


KINDS = ("plain", "guided", "interval", "auto", "clipped", "thresholded")


def leaves(denoiser):
    """Everything of a denoiser that may want a gradient."""

    found = list(denoiser.parameters())
    for module in denoiser.modules():
        if isinstance(module, Guided):
            found += [module.weight, *module.null.values()]
    return [v for v in found if isinstance(v, torch.Tensor) and v.requires_grad]


def gradients(sampler, *, seed=0, taps=True, more=(), batch=3, dtype=torch.float64, draw=None):
    """The samples, and the gradients of a loss on them, and on a state and an output, if tapped.

    The loss reaches the initial states, a condition, everything of the denoiser, and ``more``.
    """

    torch.manual_seed(seed)
    x = torch.randn(batch, 2, dtype=dtype, requires_grad=True)
    shift = torch.randn(batch, 2, dtype=dtype, requires_grad=True)
    seen = []
    options = {"observe": lambda i, x, D: seen.append((x, D))} if taps else {}
    y = sampler(x, shift=shift, **options) if draw is None else draw(sampler, x, shift)
    loss = y.square().sum()

    if taps:
        middle = len(seen) // 2
        loss = loss + seen[-1][0].sin().sum() + seen[middle][1].cos().sum()

    wanted = [x, shift, *leaves(sampler.denoiser), *more]
    return [y.detach(), *torch.autograd.grad(loss, wanted, allow_unused=True)]


def same(ours, theirs):
    """Whether two lists of gradients are equal bit for bit; 0 stands for none."""

    def equal(a, b):
        if a is None or b is None:
            other = b if a is None else a
            return other is None or not other.any()
        return torch.equal(a, b)

    return len(ours) == len(theirs) and all(map(equal, ours, theirs))
