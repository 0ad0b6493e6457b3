"""The same steps as the installed diffusers schedulers, on the same model.

The model is an exact noise prediction at the scheduler's own integer timesteps; timestep i is our
time (i + 1)/1000. Schedulers keep their σ in float32, hence the tolerances.
"""

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
import numpy as np
from oracles import double, mixture, third_order_multistep
import pytest
import torch

from genflow.models import Discrete, Exact, Rectified, grid
from genflow.solvers import build, rollout, schedule_for, tabulate

COMMON = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SPACINGS = pytest.mark.parametrize("spacing", ["trailing", "linspace"])


@pytest.fixture(scope="module")
def truth():
    """The exact denoiser on the path whose levels are the schedulers' own."""

    return Exact(Discrete(tuple(DDIMScheduler(**COMMON).alphas_cumprod.tolist())), mixture())


def made(cls, N, spacing, **options):
    if spacing is not None:
        options["timestep_spacing"] = spacing
    scheduler = cls(**COMMON, **options)
    scheduler.set_timesteps(N)
    steps = scheduler.timesteps.double()
    assert bool((steps == steps.round()).all()), "a timestep between levels would be interpolated"
    return scheduler


def times_of(scheduler, last=0.0):
    steps = scheduler.timesteps.tolist()
    return (*((s + 1) / 1000 for s in dict.fromkeys(steps)), last)


def noise_prediction(truth, x, timestep):
    t = (timestep.double() + 1) / 1000
    alpha, sigma = truth.path(t)
    return (x - alpha * truth(x, t)) / sigma


def diffuse(truth, scheduler, *, scaled=False, **options):
    """The scheduler's loop; ``scaled`` ones keep x/α and rescale the network's input."""

    x = X
    if scaled:
        x = X / truth.path((scheduler.timesteps[0].double() + 1) / 1000)[0]
    for step in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, step) if scaled else x
        x = scheduler.step(noise_prediction(truth, shown, step), step, x, **options).prev_sample
    return x


def close(ours, theirs, atol=2e-5):
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("N", [10, 20])
def test_ddim(truth, N):
    scheduler = made(DDIMScheduler, N, "trailing", clip_sample=False)
    close(build("ddim", truth, times=times_of(scheduler))(X), diffuse(truth, scheduler))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(truth, eta):
    """The same fresh noise on both sides."""

    scheduler = made(DDIMScheduler, 10, "trailing", clip_sample=False)
    fresh = torch.randn(10, 8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = X
    for step, z in zip(scheduler.timesteps, fresh, strict=True):
        model = noise_prediction(truth, x, step)
        x = scheduler.step(model, step, x, eta=eta, variance_noise=z).prev_sample

    schedule = schedule_for("ddim", truth.path, times=times_of(scheduler), eta=eta)
    table = tabulate(schedule, truth.path)
    close(rollout([truth] * 10, X, table, noise=lambda i, x: fresh[i]), x)


def test_ddpm(truth):
    """Ancestral sampling, from the same generator."""

    scheduler = made(DDPMScheduler, 10, "trailing", clip_sample=False)
    theirs = diffuse(truth, scheduler, generator=torch.Generator().manual_seed(3))
    sampler = build("ddpm", truth, times=times_of(scheduler))
    close(sampler(X, generator=torch.Generator().manual_seed(3)), theirs)


@SPACINGS
@pytest.mark.parametrize("N", [10, 20])
@pytest.mark.parametrize(
    ("order", "kind"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")], ids=str
)
def test_dpmpp_multistep(truth, spacing, N, order, kind):
    scheduler = made(DPMSolverMultistepScheduler, N, spacing, solver_order=order, solver_type=kind)
    variant = "dpmsolver" if kind == "midpoint" else "taylor"
    ours = build("dpmpp", truth, times=times_of(scheduler), order=order, variant=variant)
    close(ours(X), diffuse(truth, scheduler))


@pytest.mark.parametrize("N", [10, 20])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_dpm_multistep(truth, N, kind):
    """The noise variant ends at the cleanest level."""

    scheduler = made(
        DPMSolverMultistepScheduler,
        N,
        "trailing",
        algorithm_type="dpmsolver",
        solver_type=kind,
        final_sigmas_type="sigma_min",
    )
    variant = "dpmsolver" if kind == "midpoint" else "taylor"
    ours = build("dpm", truth, times=times_of(scheduler, 1 / 1000), order=2, variant=variant)
    close(ours(X), diffuse(truth, scheduler))


@pytest.mark.parametrize(
    ("order", "kind", "N"), [(2, "midpoint", 7), (2, "heun", 7), (3, "heun", 7)], ids=str
)
def test_dpmpp_singlestep(truth, order, kind, N):
    scheduler = made(
        DPMSolverSinglestepScheduler,
        N,
        None,
        solver_order=order,
        solver_type=kind,
        lower_order_final=True,
    )
    variant = "dpmsolver" if kind == "midpoint" else "taylor"
    options = {"order": order, "variant": variant, "method": "singlestep"}
    ours = build("dpmpp", truth, times=times_of(scheduler), **options)
    close(ours(X), diffuse(truth, scheduler))


@SPACINGS
@pytest.mark.parametrize("predict", ["data", "noise"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(truth, spacing, predict, variant, order):
    """To clean data for bh2 of data; the others are NaN there in diffusers, and end at level 0."""

    clean = (variant, predict) == ("bh2", "data")
    scheduler = made(
        UniPCMultistepScheduler,
        10,
        spacing,
        solver_order=order,
        solver_type=variant,
        predict_x0=predict == "data",
        final_sigmas_type="zero" if clean else "sigma_min",
    )
    options = {"order": order, "variant": variant, "predict": predict}
    times = times_of(scheduler, 0.0 if clean else 1 / 1000)
    close(build("unipc", truth, times=times, **options)(X), diffuse(truth, scheduler), atol=5e-5)
    assert bool(build("unipc", truth, times=times_of(scheduler), **options)(X).isfinite().all())


@pytest.mark.parametrize("N", [10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(truth, N, order):
    scheduler = made(DEISMultistepScheduler, N, "trailing", solver_order=order)
    ours = build("deis", truth, times=times_of(scheduler, 1 / 1000), order=order)
    close(ours(X), diffuse(truth, scheduler), atol=5e-5)


@pytest.mark.parametrize("N", [10, 20])
def test_heun_discrete(truth, N):
    scheduler = made(HeunDiscreteScheduler, N, "trailing")
    ours = build("karras-heun", truth, times=times_of(scheduler))
    close(ours(X), diffuse(truth, scheduler, scaled=True), atol=1e-4)
    assert ours.nfe == len(scheduler.timesteps) == 2 * N - 1


@pytest.mark.parametrize("N", [10, 20])
def test_euler_discrete_is_ddim(truth, N):
    scheduler = made(EulerDiscreteScheduler, N, "trailing")
    ours = build("ddim", truth, times=times_of(scheduler))
    close(ours(X), diffuse(truth, scheduler, scaled=True), atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift):
    flow, N = Exact(Rectified(), mixture()), 10
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / N, N).tolist())
    x = X
    for step in scheduler.timesteps:
        velocity = flow.velocity(x, step.double() / 1000)
        x = scheduler.step(velocity, step, x).prev_sample
    times = grid(Rectified(), N, shift=shift)
    close(double(times), scheduler.sigmas, atol=1e-6)
    close(build("euler", flow, times=times)(X), x)


@pytest.mark.parametrize("cls", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_multistep_on_flow_models(cls):
    """The schedulers' flow prediction is the data estimate of the straight path."""

    flow, N = Exact(Rectified(), mixture()), 10
    scheduler = cls(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2)
    scheduler.set_timesteps(N)
    times = scheduler.sigmas.double().tolist()
    x = X
    for t, step in zip(times[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step(flow.velocity(x, double(t)), step, x).prev_sample
    name = "unipc" if cls is UniPCMultistepScheduler else "dpmpp"
    close(build(name, flow, times=times, order=2)(X), x.double(), atol=1e-4)


@pytest.mark.parametrize("N", [10, 20])
def test_third_order_multistep_halves_the_second_derivative(truth, N):
    """diffusers' third-order update is the halved one of the published code; ours is not."""

    scheduler = made(
        DPMSolverMultistepScheduler,
        N,
        "trailing",
        solver_order=3,
        final_sigmas_type="sigma_min",
    )
    times = times_of(scheduler, 1 / 1000)
    theirs = diffuse(truth, scheduler)
    half, whole = (
        third_order_multistep(truth, X, times, lower_final=N < 15, whole=w) for w in (False, True)
    )
    close(half, theirs)
    ours = build("dpmpp-3m", truth, times=times)(X)
    close(ours, whole, atol=1e-10)
    assert (ours - theirs).abs().max() > 1e-3
