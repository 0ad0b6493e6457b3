"""The last calls alone: against a graph that is cut by hand; windows at random; resampling."""

from nets import leaves, same, wrapped
import pytest
import torch

from genflow.models import VariancePreserving
from genflow.solvers import Sampler, Tableau, adjoint, build, rollout

PATH = VariancePreserving()


def drawn(seed=0):
    torch.manual_seed(seed)
    x, shift = torch.randn(2, 3, 2, dtype=torch.float64).unbind(0)
    return x.clone().requires_grad_(), shift.clone().requires_grad_()


def cut(sampler, K, x, shift):
    """The rollout with the first stages outside the graph, written out."""

    stages, table = sampler.stages(shift=shift), sampler.tableau
    first = len(stages) - K
    frozen = []

    def outside(stage):
        def call(x, t):
            with torch.no_grad():
                return stage(x, t)

        return call

    def inside(i, stage):
        def call(x, t):
            frozen.append(x)
            return stage(x, t)

        return call

    early = [outside(s) for s in stages[:first]]
    late = [inside(i, s) for i, s in enumerate(stages[first:])]
    return rollout([*early, *late], x.detach(), table)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "unipc", "ddpm", "heun"])
@pytest.mark.parametrize("K", [1, 2, 5, 6])
@pytest.mark.parametrize("keep", [0, 1, 99])
def test_against_a_graph_cut_by_hand(name, K, keep):
    denoiser = wrapped("guided", PATH)
    N = 3 if name == "heun" else 6
    found = []

    for policy in ("none", adjoint.Truncated(K, keep)):
        sampler = build(name, denoiser, N, gradient=policy)
        x, shift = drawn()
        y = sampler(x, shift=shift) if policy != "none" else cut(sampler, K, x, shift)
        wanted = [shift, *leaves(denoiser)]
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), wanted)])

    assert same(*found)


def test_all_calls_are_the_exact_gradient():
    denoiser = wrapped("plain", PATH)
    found = []
    for policy in ("exact", adjoint.Truncated(6)):
        x, shift = drawn()
        y = build("unipc", denoiser, 6, gradient=policy)(x, shift=shift)
        found.append([y.detach(), *torch.autograd.grad(y.sum(), [x, shift, *leaves(denoiser)])])
    assert same(*found)


def test_weights_of_the_last_steps():
    """Weights that are learned multiply states of before the cut, which must be known."""

    denoiser = wrapped("plain", PATH)
    known = build("dpmpp-3m", denoiser, 6).tableau
    found = []

    for policy in ("none", adjoint.Truncated(2)):
        weight = known.weight.clone().requires_grad_()
        sampler = Sampler(denoiser, Tableau(known.time, weight, known.noise), policy)
        x, shift = drawn()
        y = sampler(x, shift=shift) if policy != "none" else cut(sampler, 2, x, shift)
        (g,) = torch.autograd.grad(y.square().sum(), weight)
        found.append([y.detach(), g[-2:]])

    # By hand the early rows are in the graph as well; the last two are alike.
    assert same(*found) and found[0][1].any()


def test_states_before_the_cut_are_constants():
    denoiser, seen = wrapped("plain", PATH), []
    x, shift = drawn()
    sampler = build("ddim", denoiser, 5, gradient="truncated")
    sampler(x, shift=shift, observe=lambda i, x, D: seen.append((x, D)))
    assert [D.requires_grad for _, D in seen] == [False] * 4 + [True]
    assert not any(x.requires_grad for x, _ in seen)


def test_random_windows():
    """Every length of the range comes up; the same seed draws the same."""

    denoiser = wrapped("plain", PATH)
    count, lengths = [], []
    denoiser.net.register_forward_hook(lambda *_: count.append(0))
    sampler = build("ddim", denoiser, 6, gradient=adjoint.Truncated((2, 4)))
    torch.manual_seed(0)

    for _ in range(40):
        x, shift = torch.randn(2, 1, 2, dtype=torch.float64).unbind(0)
        y = sampler(x, shift=shift)
        count.clear()
        y.sum().backward()
        lengths.append(len(count))

    assert set(lengths) == {2, 3, 4}
    found = []
    for _ in range(2):
        x, shift = drawn(3)
        y = sampler(x, shift=shift)
        found.append(torch.autograd.grad(y.sum(), leaves(denoiser)))
    assert same(*found)


def test_resampled_last_calls():
    """n new states on the last level, from the samples; blocks of B rows, conditions repeated."""

    denoiser = wrapped("plain", PATH)
    sampler = build("ddim", denoiser, 6, gradient=adjoint.Truncated(resamples=4))
    plain = build("ddim", denoiser, 6)
    x, shift = drawn()
    streams = [torch.Generator().manual_seed(i) for i in range(3)]
    y = sampler(x, shift=shift, generator=streams)
    found = [y.detach(), *torch.autograd.grad(y.square().sum(), [shift, *leaves(denoiser)])]

    end = plain(x, shift=shift)
    streams = [torch.Generator().manual_seed(i) for i in range(3)]
    z = torch.cat([PATH.noise.sample((3, 2), generator=streams, dtype=x.dtype) for _ in range(4)])
    t = plain.tableau.time[-1]
    alpha, sigma = PATH(t)
    noisy = alpha * end.repeat(4, 1) + sigma * z
    row = plain.tableau.weight[-1]
    data = denoiser.at(float(t))(noisy, t, shift=shift.repeat(4, 1))
    y = float(row[0]) * noisy + float(row[1]) * data
    wanted = [y.detach(), *torch.autograd.grad(y.square().sum(), [shift, *leaves(denoiser)])]

    assert found[0].shape == (12, 2)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not torch.equal(y[:3], y[3:6])
