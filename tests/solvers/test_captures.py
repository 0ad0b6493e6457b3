"""Captured solves: places are filled, noise is drawn in order, and a shape is recorded once."""

import pytest
import torch

from genflow.errors import UserError
from genflow.models import Guided, Preconditioned, Rectified, StudentT, VariancePreserving
from genflow.models.paths import Karras
from genflow.nn import MLP
from genflow.solvers import build
from genflow.solvers.captures import Captured


def denoiser(path=None, prediction="noise", classes=None):
    torch.manual_seed(0)
    return Preconditioned(MLP(2, 16, 1, classes=classes), path or VariancePreserving(), prediction)


def tape(log):
    """What stands for a CUDA graph on a CPU: runs again, between the same places."""

    def record(run, pool):
        out = run().clone()
        log.append(out.shape)
        return lambda: out.copy_(run()), out

    return record


def captured(sampler):
    log = []
    return Captured(sampler, tape(log)), log


def test_a_replay_reads_new_states_and_conditions():
    sampler = build("unipc", denoiser(classes=3), 5)
    solve, log = captured(sampler)

    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        x, label = sampler.init((6, 2), generator=g), torch.randint(3, (6,), generator=g)
        kept = x.clone()
        assert torch.equal(solve(x, label=label), sampler(x, label=label))
        assert torch.equal(x, kept)

    assert log == [(6, 2)] and len(solve) == 1 and solve.nfe == sampler.nfe


def test_what_a_solve_returns_is_not_overwritten_by_the_next():
    sampler = build("ddim", denoiser(), 3)
    solve, _ = captured(sampler)
    first = solve(torch.ones(4, 2))
    kept = first.clone()
    solve(-torch.ones(4, 2))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("name", ["ddpm", "karras-heun"])
@pytest.mark.parametrize("own", [True, False])
def test_fresh_noise_is_that_of_the_plain_sampler(name, own):
    options = {"churn": 20.0} if name == "karras-heun" else {}
    path, prediction = (Karras(0.01, 10.0), "karras") if options else (None, "noise")
    sampler = build(name, denoiser(path, prediction), 6, **options)
    assert sum(sampler.tableau.noisy) > 2
    solve, _ = captured(sampler)
    x = sampler.init((5, 2), generator=torch.Generator().manual_seed(0))
    for first in (0, 100):
        found = []
        for run in (sampler, solve):
            torch.manual_seed(first)
            sources = [torch.Generator().manual_seed(first + k) for k in range(5)]
            found.append(run(x, generator=sources if own else None))
        assert torch.equal(*found)


def test_kicks_of_student_noise_are_recorded_too():
    d = denoiser(Karras(0.01, 10.0, noise=StudentT(5.0)), "karras")
    sampler = build("karras-heun", d, 5, churn=20.0)
    solve, _ = captured(sampler)
    x = sampler.init((5, 2), generator=torch.Generator().manual_seed(0))
    one, two = (torch.Generator().manual_seed(1) for _ in range(2))
    assert torch.equal(solve(x, generator=one), sampler(x, generator=two))


def test_each_shape_is_recorded_once_and_moved_weights_anew():
    d = denoiser()
    sampler = build("dpmpp-2m", d, 4)
    solve, log = captured(sampler)
    for n in (4, 3, 4, 3):
        solve(torch.ones(n, 2))
    assert log == [(4, 2), (3, 2)]

    with torch.no_grad():  # in place: the recorded solve sees it
        d.net.model.leave[2].bias.add_(1.0)
    x = torch.ones(4, 2)
    assert torch.equal(solve(x), sampler(x)) and len(log) == 2

    d.net.model.leave[2].bias.data = d.net.model.leave[2].bias.data + 1.0  # elsewhere
    assert torch.equal(solve(x), sampler(x)) and len(log) == 3


def test_autocast_at_the_call_is_that_of_the_solve():
    sampler = build("ddim", denoiser(), 3)
    solve, log = captured(sampler)
    x = torch.linspace(-1, 1, 8).reshape(4, 2)
    plain = solve(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = solve(x)
        assert torch.equal(half, sampler(x))
    assert not torch.equal(plain, half) and len(log) == 2


def test_guidance_and_plain_values_belong_to_the_key():
    d = Guided(denoiser(classes=3), 2.0, {"label": 3})
    sampler = build("ddim", d, 3)
    solve, _ = captured(sampler)
    x, label = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
    assert torch.equal(solve(x, label=label), sampler(x, label=label))


# ------------------------------------------------------------------------------- refusals


def test_what_cannot_be_captured_is_said_at_once():
    with pytest.raises(UserError, match="denoiser is on cpu: move the sampler to a GPU"):
        build("ddim", denoiser(), 3).capture()
    with pytest.raises(UserError, match="dopri5 chooses its steps as it goes"):
        build("dopri5", denoiser(Rectified(), "flow"), 1).capture()
    with pytest.raises(UserError, match="a captured solve has no gradients"):
        Captured(build("ddim", denoiser(), 3, gradient="exact"))
