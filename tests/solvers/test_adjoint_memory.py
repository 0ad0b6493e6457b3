"""What is kept and how often the network is called: counted, not timed. And two processes."""

import gc
import os
import weakref

from nets import Net, gradients, same, wrapped
import pytest
from ranks import together
import torch
from torch import nn

from genflow.models import Preconditioned, VariancePreserving
from genflow.solvers import adjoint, build

PATH = VariancePreserving()
BATCH = 4


class Ledger(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that graphs keep: now, and at their peak."""

    class Held:
        """A saved tensor."""

        def __init__(self, tensor):
            self.tensor = tensor

    def __init__(self):
        self.now = self.peak = 0
        super().__init__(self.pack, lambda held: held.tensor)

    def pack(self, tensor):
        held, size = self.Held(tensor.detach()), tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(held, self.drop, size)
        return held

    def drop(self, size):
        self.now -= size


def peaks(policy, N, name="unipc"):
    """Bytes kept when the samples are there, and at the peak of both passes."""

    torch.manual_seed(0)
    denoiser = Preconditioned(Net(torch.float32, width=256), PATH, "v")
    sampler = build(name, denoiser, N, gradient=policy)
    x = torch.randn(BATCH, 2, requires_grad=True)

    ledger = Ledger()

    with ledger:
        y = sampler(x)
        kept = ledger.now
        y.square().sum().backward()

    return kept, ledger.peak


def test_the_memory_law():
    """40 more steps cost 40 states, and nothing else."""

    state = BATCH * 2 * 4
    (kept, peak), (kept_more, peak_more) = (peaks("exact", N) for N in (10, 50))
    assert kept == 10 * state and kept_more == 50 * state
    assert peak_more - peak == 40 * state
    (_, direct), (_, direct_more) = (peaks("direct", N) for N in (10, 50))
    assert 4.5 < direct_more / direct < 5.1
    assert direct_more > 20 * peak_more


def test_kept_calls_cost_their_activations():
    _, none = peaks("exact", 10)
    two, _ = peaks(adjoint.Exact(keep=2), 10)
    assert 1.5 * none < two < 2.5 * none


def test_truncated_keeps_the_states_of_the_last_calls():
    state = BATCH * 2 * 4
    assert peaks(adjoint.Truncated(3), 50)[0] == 3 * state
    assert peaks(adjoint.Continuous(chart="phi", states="resolved"), 50, "ddim")[0] == state
    stored = peaks(adjoint.Continuous(chart="phi"), 50, "ddim")[0]
    assert stored == 51 * state


@pytest.mark.parametrize("policy", ["exact", adjoint.Exact(2), adjoint.Continuous(chart="phi")])
def test_a_graph_goes_with_its_samples(policy):
    """States that an observer keeps do not keep their own graph alive."""

    denoiser = Preconditioned(Net(torch.float32), PATH, "v")
    sampler = build("ddim", denoiser, 6, gradient=policy)
    ledger = Ledger()

    def once():
        seen = []
        with ledger:
            sampler(torch.randn(3, 2), observe=lambda i, x, D: seen.append((x, D)))
        return ledger.now

    gc.disable()
    try:
        assert once() > 0
        assert ledger.now == 0
    finally:
        gc.enable()


def calls(policy, N=6, name="ddim", last="min"):
    """Calls of the network: forward, and on the way back."""

    denoiser = Preconditioned(Net(), PATH, "v")
    count = []
    denoiser.net.register_forward_hook(lambda *_: count.append(torch.is_grad_enabled()))
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    y = build(name, denoiser, N, gradient=policy, final=last)(x)
    first = len(count)
    y.sum().backward()
    return first, len(count) - first


@pytest.mark.parametrize(
    ("policy", "back"),
    [
        ("direct", 0),
        ("exact", 6),
        (adjoint.Exact(keep=2), 4),
        (adjoint.Exact(keep=99), 0),
        (adjoint.Truncated(2), 2),
        (adjoint.Truncated(2, keep=1), 1),
        (adjoint.Continuous(chart="phi"), 6),
        (adjoint.Continuous("multistep", "phi"), 6),
        (adjoint.Continuous("heun", "phi"), 12),
        (adjoint.Continuous(chart="phi", states="resolved"), 6),
    ],
)
def test_calls(policy, back):
    assert calls(policy) == (6, back)


def test_calls_of_resampled_last_steps():
    assert calls(adjoint.Truncated(resamples=3)) == (7, 1)
    assert calls(adjoint.Truncated(resamples=3, keep=1)) == (7, 0)


def test_states_can_be_kept_elsewhere():
    """The hooks of autograd see the states alone."""

    denoiser = wrapped("plain", PATH)
    seen = []

    def pack(t):
        seen.append(t.shape)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        y = build("dpmpp-3m", denoiser, 7, gradient="exact")(x, shift=x.detach())
    assert seen == [(3, 2)] * 7
    y.sum().backward()


def test_offloading_changes_no_bit():
    denoiser = wrapped("guided", PATH)
    ours = gradients(build("unipc", denoiser, 5, gradient="exact"))
    with torch.autograd.graph.save_on_cpu():
        theirs = gradients(build("unipc", denoiser, 5, gradient="exact"))
    assert same(ours, theirs)


# --------------------------------------------------------------------------- two processes


class Loss(nn.Module):
    """A sampler and a loss, to be wrapped as a whole."""

    def __init__(self, policy):
        super().__init__()
        torch.manual_seed(0)
        self.denoiser = Preconditioned(Net(), PATH, "v")
        self.sampler = build("unipc", self.denoiser, 5, gradient=policy)

    def forward(self, x):
        """The mean loss of a batch."""

        return self.sampler(x).square().mean()


def _rank(rank, file, policy):
    model = nn.parallel.DistributedDataParallel(Loss(policy))
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for half in x.chunk(4)[rank::2]:
        model(half).backward()
    if rank == 0:
        torch.save([p.grad for p in model.module.denoiser.parameters()], file)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["exact", adjoint.Truncated(2)])
def test_two_processes_have_the_gradient_of_one(tmp_path, policy):
    file = os.fspath(tmp_path / "gradients.pt")
    together(2, _rank, tmp_path, file, policy)
    shared = torch.load(file)
    alone = Loss(policy)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for part in x.chunk(4):
        (alone(part) / 2).backward()
    for ours, theirs in zip(shared, alone.denoiser.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-12, atol=1e-12)
