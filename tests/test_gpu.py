"""What only a GPU can show: the same numbers there, and no synchronisation inside the loop."""

import pytest
import torch

from genflow.data import anisotropic
from genflow.models import Preconditioned, Rectified, VariancePreserving, fit_bridge
from genflow.nn import UNet
from genflow.solvers import build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def denoiser(path, prediction):
    torch.manual_seed(0)
    net = UNet(16, 3, widths=(32, 32), layers=1, attention=(), classes=4)
    return Preconditioned(net, path, prediction)


@pytest.mark.parametrize("name", ["heun", "dpmpp-2m", "unipc", "dpm-3s", "deis", "ipndm"])
def test_a_gpu_gives_what_the_cpu_gives(name):
    d = denoiser(VariancePreserving(), "noise")
    sampler = build(name, d, 6)
    x = sampler.init((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    label = torch.arange(4)
    ours = sampler(x, label=label)
    there = sampler.to("cuda")(x.cuda(), label=label.cuda())
    assert torch.allclose(there.cpu(), ours, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp-2m", "unipc"])
def test_the_loop_never_waits_for_the_gpu(name):
    d = denoiser(Rectified(), "flow").cuda()
    sampler = build(name, d, 8)
    x = sampler.init((2, 3, 16, 16), device="cuda")
    label = torch.zeros(2, dtype=torch.long, device="cuda")
    sampler(x, label=label)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler(x, label=label)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bfloat16_networks_sample_finite_images():
    d = denoiser(Rectified(), "flow").to("cuda", torch.bfloat16)
    sampler = build("dpmpp-2m", d, 8)
    x = sampler(sampler.init((2, 3, 16, 16), device="cuda"))
    assert x.dtype == torch.float32 and bool(x.isfinite().all())


def peak_of(policy, N):
    """The samples, their gradients, and the bytes that both passes needed beside the network."""

    d = denoiser(VariancePreserving(), "v").cuda()
    sampler = build("unipc", d, N, gradient=policy)
    x = sampler.init((8, 3, 16, 16), generator=torch.Generator().manual_seed(0)).cuda()
    label = torch.arange(8, device="cuda") % 4
    torch.autograd.grad(
        d(x, torch.tensor(0.5, device="cuda"), label=label).sum(), d.net.model.conv_out.bias
    )
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    y = sampler(x.requires_grad_(), label=label)
    found = torch.autograd.grad(y.square().sum(), [x, *d.parameters()])
    return [y.detach(), *found], torch.cuda.max_memory_allocated() - base


def test_exact_gradients_on_a_gpu():
    """Those of autograd, at a memory that does not grow with the steps."""

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        (theirs, _), (ours, few), (_, many) = (
            peak_of(*run) for run in (("direct", 6), ("exact", 6), ("exact", 30))
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert many < 1.1 * few


def test_exact_gradients_under_autocast_and_dropout_on_a_gpu():
    torch.manual_seed(0)
    net = UNet(16, 3, widths=(32, 32), layers=1, attention=(), dropout=0.3)
    d = Preconditioned(net, VariancePreserving(), "v").cuda().train()
    x = torch.randn(4, 3, 16, 16, device="cuda", requires_grad=True)
    found = []
    for policy in ("direct", "exact"):
        torch.manual_seed(1)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            y = build("ddpm", d, 5, gradient=policy)(x)
        found.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), [x])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("covariance", ["diagonal", "lowrank", "full"])
@pytest.mark.parametrize("loss", ["dual", "matching"])
def test_a_bridge_is_fitted_where_its_points_are(covariance, loss):
    problem = anisotropic(4, 1.0)
    x, y = problem.pairs(4000, generator=torch.Generator().manual_seed(0))
    options = {"components": 5, "covariance": covariance, "rank": 2, "loss": loss, "steps": 60}
    fit = fit_bridge(x.cuda(), y.cuda(), epsilon=1.0, **options)
    assert fit.bridge.centre.is_cuda and fit.objective[fit.kept] < fit.objective[0]
    ours = fit_bridge(x, y, epsilon=1.0, **options)
    assert fit.objective[0] == pytest.approx(ours.objective[0], abs=0.1)
