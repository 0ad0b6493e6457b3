"""What only a GPU can show about scale: captured solves to the bit, decoding beside sampling."""

import pytest
import torch

from genflow.models import Guided, Karras, Preconditioned, StudentT, VariancePreserving
from genflow.nn import UNet
from genflow.pipelines import Pipeline
from genflow.pipelines.overlap import behind
from genflow.solvers import Alteration, Sampler, SolverSchedule, Step, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _the_same_kernels():
    """Algorithms are chosen by rule and not by a race between them."""

    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def denoiser(path=None, prediction="v", **options):
    torch.manual_seed(0)
    net = UNet(16, 3, widths=(32, 32), layers=1, attention=(8,), classes=4, **options)
    torch.nn.init.normal_(net.model.conv_out.weight, std=0.1)
    return Preconditioned(net.eval(), path or VariancePreserving(), prediction).cuda()


def inputs(sampler, seed, n=4):
    g = torch.Generator().manual_seed(seed)
    x = sampler.init((n, 3, 16, 16), generator=g, device="cuda")
    return x, (torch.arange(n) + seed).cuda() % 4


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp-2m", "unipc", "deis", "dpm-3s", "ipndm"])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_captured_solve_is_the_plain_one_to_the_bit(name, guidance):
    d = denoiser()
    d = d if guidance is None else Guided(d, guidance, {"label": 4}, interval=(0.2, 0.8))
    sampler = build(name, d, 6)
    solve = sampler.capture()
    with torch.no_grad():
        for seed, n in ((0, 4), (1, 4), (2, 3), (3, 4)):
            x, label = inputs(sampler, seed, n)
            assert torch.equal(solve(x, label=label), sampler(x, label=label))
    assert len(solve) == 2


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("case", ["ddpm", "karras-heun", "student"])
def test_fresh_noise_is_that_of_the_plain_sampler(case, own):
    noise = {"noise": StudentT(64.0)} if case == "student" else {}
    if case == "ddpm":
        sampler = build("ddpm", denoiser(), 6)
    else:
        d = denoiser(Karras(0.01, 10.0, **noise), "karras")
        sampler = build("karras-heun", d, 6, churn=20.0)
    solve = sampler.capture()
    x, label = inputs(sampler, 0)
    for first in (0, 50):
        found = []
        for run in (sampler, solve):
            torch.manual_seed(first)
            sources = [torch.Generator().manual_seed(first + k) for k in range(4)]
            with torch.no_grad():
                found.append(run(x, generator=sources if own else None, label=label))
        assert torch.equal(*found)


def test_capture_under_autocast_and_with_altered_blocks():
    d = denoiser()
    name = "mid_block.attentions.0"
    steps = (Step(), Step(change=Alteration(drop=(name,))), Step())
    sampler = Sampler(d, SolverSchedule((1.0, 0.6, 0.3, 0.01), steps))
    solve = sampler.capture()
    x, label = inputs(sampler, 0)
    with torch.no_grad():
        assert torch.equal(solve(x, label=label), sampler(x, label=label))
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.equal(solve(x, label=label), sampler(x, label=label))
    assert len(solve) == 2


def test_weights_changed_in_place_count():
    sampler = build("ddim", denoiser(), 4)
    solve = sampler.capture()
    x, label = inputs(sampler, 0)
    before = solve(x, label=label)
    with torch.no_grad():
        sampler.denoiser.net.model.conv_out.bias.add_(0.5)
        after = solve(x, label=label)
        assert torch.equal(after, sampler(x, label=label)) and not torch.equal(before, after)
    assert len(solve) == 1


def test_pipelines_capture_and_overlap_without_changing_a_sample():
    pipe = Pipeline(denoiser(), (3, 16, 16), steps=5)
    seeds = list(range(10))
    label = pipe.labels(None, 10)

    def run(**options):
        return torch.cat([b.x for b in pipe.batches(seeds, label, batch_size=4, **options)])

    plain = run()
    for options in ({"capture": True}, {"overlap": True}, {"capture": True, "overlap": True}):
        assert torch.equal(run(**options), plain)


def test_decoding_beside_sampling_keeps_the_order():
    device, net = torch.device("cuda"), torch.nn.Conv2d(8, 8, 3, padding=1).cuda()

    def states():
        for k in range(6):
            x = torch.full((4, 8, 64, 64), float(k), device=device)
            for _ in range(20):
                x = x + 0 * net(x)
            yield x, k

    with torch.no_grad():
        for y, k in behind(states(), lambda x: 2 * x, device):
            assert not y.is_cuda and torch.equal(y, torch.full_like(y, 2.0 * k))
