"""Blocks of stock networks, dropped and reused by the schedules of adapted pipelines."""

import foreign
import pytest
import torch

from genflow.models import Guided
from genflow.models.grids import grid
from genflow.nn import blocks_of, flops
from genflow.pipelines.adapters import adapt
from genflow.solvers import Alteration, Sampler, SolverSchedule, Step

MAKES = {
    "sd": foreign.stable,
    "sd3": foreign.stable_3,
    "flux": foreign.flux,
    "dit": foreign.dit_pipeline,
}


@pytest.mark.parametrize("name", MAKES)
def test_blocks_of_stock_networks_are_left_out(name):
    pipe = adapt(MAKES[name](), size=(16, 16))
    words = {} if pipe.condition is None else {"prompt": ["a cat", "dog"]}
    cond = pipe.conditions(2, **words) if words else {"label": torch.tensor([1, 2])}
    null = {k: torch.zeros_like(v[:1]) for k, v in cond.items()}
    denoiser = Guided(pipe.denoiser, 2.0, null=null)
    block = list(blocks_of(pipe.denoiser.net.model))[0]
    z = torch.randn(2, *pipe.shape, generator=torch.Generator().manual_seed(0))
    times = grid(denoiser.path, 3)

    def run(*changes):
        steps = tuple(Step(change=c) for c in changes)
        return Sampler(denoiser, SolverSchedule(times, steps))(z, **cond)

    keep, drop, reuse = Alteration(), Alteration(drop=(block,)), Alteration(reuse=(block,))
    full, gone, again = run(keep, keep, keep), run(keep, drop, drop), run(keep, reuse, reuse)
    assert full.isfinite().all() and (gone - full).abs().max() > 1e-4
    # A branch that is a step old is nearer to the right one than none.
    assert 0 < (again - full).square().mean() < 0.5 * (gone - full).square().mean()
    assert torch.equal(run(keep, keep, keep), full)

    table = flops(pipe.denoiser.net, pipe.shape, **{k: v[:1] for k, v in cond.items()})
    assert table.full > table.least >= 0 and table.saving[block] > 0
