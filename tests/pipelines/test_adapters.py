"""The way in: the same images as the stock pipelines, from the same latents."""

import diffusers
import foreign
import numpy as np
import pytest
import torch

from genflow.models import CLOCKS, Discrete, Karras, Rectified
from genflow.pipelines.adapters import adapt, denoiser_of, discrete_path
from genflow.pipelines.jobs import generate
from genflow.solvers import build

torch.set_num_threads(1)

SIZE = (16, 16)
WORDS, BAD = ["a cat", "dog"], ["bad", "ugly"]
N = 10


def generators():
    return [torch.Generator().manual_seed(s) for s in (3, 4)]


def noise(shape):
    """The states that a stock pipeline draws from these generators."""

    return torch.cat([torch.randn(1, *shape, generator=g) for g in generators()])


def same(ours, theirs, atol=1e-5):
    """Our samples in [−1, 1] against their images in [0, 1], not clipped into agreement."""

    assert ours.std() > 0.2 and (ours.abs() < 1).float().mean() > 0.3
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=atol)


def dpmpp(**options):
    options = {**foreign.BETAS, "timestep_spacing": "trailing", **options}
    return diffusers.DPMSolverMultistepScheduler(**options)


SOLVERS = pytest.mark.parametrize(
    ("made", "sampler"), [(foreign.ddim, "ddim"), (dpmpp, "dpmpp-2m")], ids=["ddim", "dpmpp-2m"]
)


# ------------------------------------------------------------------------ pixels, classes


@SOLVERS
@pytest.mark.parametrize("told", ["v_prediction", "sample"])
def test_ddpm(made, sampler, told):
    pipeline = foreign.ddpm(made(prediction_type=told))
    pipe = adapt(pipeline)
    z = noise(pipe.shape)
    theirs = pipeline(2, generators(), num_inference_steps=N, output_type="pt").images
    same(pipe.sample(z, sampler=sampler, steps=N), theirs)


@SOLVERS
def test_ddpm_on_noise(made, sampler):
    """Untrained noise predictions lead far out of the range of images: compared unclipped."""

    scheduler = made()
    pipeline = foreign.ddpm(scheduler)
    pipe = adapt(pipeline)
    z = noise(pipe.shape)
    x = z
    scheduler.set_timesteps(N)
    for t in scheduler.timesteps:
        x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    ours = pipe.sample(z, sampler=sampler, steps=N)
    assert ours.std() > 1
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("told", ["epsilon", "v_prediction", "sample"])
def test_cosine_levels(told):
    scheduler = foreign.ddim(beta_schedule="squaredcos_cap_v2", prediction_type=told)
    pipeline = foreign.ddpm(scheduler)
    pipe = adapt(pipeline)
    z = x = noise(pipe.shape)
    scheduler.set_timesteps(N)
    for t in scheduler.timesteps:
        x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(pipe.sample(z, sampler="ddim", steps=N), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("w", [1.0, 4.0])
@pytest.mark.parametrize("learned", [True, False])
def test_dit(learned, w):
    pipeline = foreign.dit_pipeline(learned)
    pipe = adapt(pipeline)
    z = noise(pipe.shape)
    options = {"num_inference_steps": N, "output_type": "pt", "guidance_scale": w}
    theirs = pipeline([3, 7], generator=generators(), **options).images
    label = torch.tensor([3, 7])
    same(pipe.sample(z, label=label, sampler="ddim", steps=N, guidance=w), theirs)
    assert pipe.denoiser.net.classes == 1000 and pipe.event == (3, 16, 16)


def test_flow_networks_in_ddpm_pipelines():
    """What genflow itself exports: a stock pipeline with the scheduler of flow models."""

    pipeline = foreign.ddpm(diffusers.FlowMatchEulerDiscreteScheduler())
    pipe = adapt(pipeline)
    z = noise(pipe.shape)
    theirs = pipeline(2, generators(), num_inference_steps=N, output_type="pt").images
    times = tuple(pipeline.scheduler.sigmas.tolist())
    assert isinstance(pipe.denoiser.path, Rectified) and pipe.denoiser.prediction == "flow"
    same(pipe.sample(z, sampler="euler", times=times), theirs)


def test_edm_networks():
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=40.0, sigma_data=0.4)
    net = foreign.unet()
    denoiser = denoiser_of(net, scheduler.config)
    assert denoiser.path == Karras(0.01, 40.0, 7.0)

    scheduler.set_timesteps(N)
    start = noise((3, 8, 8)) * 40
    x = start
    for t in scheduler.timesteps:
        told = scheduler.scale_model_input(x, t)
        x = scheduler.step(net(told, t).sample, t, x).prev_sample
    ours = build("ddim", denoiser, N, grid="karras")(start)
    assert ours.std() > 0.2
    torch.testing.assert_close(ours, x, rtol=2e-5, atol=2e-5)


# ---------------------------------------------------------------------------------- text


def text(pipeline, options, theirs, **ours):
    pipe = adapt(pipeline, size=SIZE)
    z = latents = noise(pipe.shape)
    if isinstance(pipeline, diffusers.FluxPipeline):
        latents = pipeline._pack_latents(z, len(z), *pipe.shape)
    images = pipeline(
        prompt=WORDS,
        latents=latents,
        num_inference_steps=N,
        output_type="pt",
        height=SIZE[0],
        width=SIZE[1],
        **theirs,
    ).images
    found = pipe.sample(z, prompt=WORDS, steps=N, **options, **ours)
    same(found, images)
    other = pipe.sample(z, prompt=["eel", "ox"], steps=N, **options, **ours)
    assert (found - other).abs().max() > 0.02, "the prompt makes no difference"


OFF = ({"guidance_scale": 1.0}, {})
ON = ({"guidance_scale": 5.0}, {"guidance": 5.0})
AWAY = (ON[0] | {"negative_prompt": BAD}, ON[1] | {"negative": BAD})
GUIDANCE = pytest.mark.parametrize(
    ("theirs", "ours"), [OFF, ON, AWAY], ids=["no guidance", "guidance", "negative prompts"]
)


@SOLVERS
@GUIDANCE
def test_stable_diffusion(made, sampler, theirs, ours):
    text(foreign.stable(made(steps_offset=1)), {"sampler": sampler}, theirs, **ours)


@pytest.mark.parametrize("told", ["v_prediction", "sample"])
def test_stable_diffusion_on_other_predictions(told):
    pipeline = foreign.stable(foreign.ddim(steps_offset=1, prediction_type=told))
    text(pipeline, {"sampler": "ddim"}, AWAY[0], **AWAY[1])


def test_stable_diffusion_with_zero_terminal_signal():
    """At α = 2⁻¹² diffusers' multistep solvers and ours agree; its DDIM has α = 0 there."""

    pipeline = foreign.stable(
        dpmpp(steps_offset=1, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    )
    text(pipeline, {"sampler": "dpmpp-2m"}, ON[0], **ON[1])


@pytest.mark.parametrize("zeros", [True, False])
@GUIDANCE
def test_stable_diffusion_xl(zeros, theirs, ours):
    text(foreign.stable_xl(zeros), {"sampler": "ddim"}, theirs, **ours)


def test_stable_diffusion_xl_with_means_of_latents():
    pipeline = foreign.stable_xl(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[2.0, 1, 0.5, 3])
    text(pipeline, {"sampler": "ddim"}, OFF[0])


SIGMAS = np.linspace(1, 1 / N, N)


@GUIDANCE
def test_stable_diffusion_3(theirs, ours):
    pipeline = foreign.stable_3(shift=3.0)
    text(pipeline, {"sampler": "euler"}, theirs | {"sigmas": SIGMAS}, **ours)
    assert adapt(pipeline).spacing == {"shift": 3.0}


def test_stable_diffusion_3_by_a_multistep_solver():
    """The stock DPM-Solver++ of flow models on the same grid."""

    pipeline = foreign.stable_3()
    pipeline.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
    )
    pipe = adapt(pipeline, size=SIZE)
    assert pipe.spacing == {"shift": 2.0} and pipe.denoiser.prediction == "flow"
    pipeline.scheduler.set_timesteps(N)
    times = tuple(pipeline.scheduler.sigmas.double().tolist())
    z = noise(pipe.shape)
    cond = pipe.conditions(2, prompt=WORDS)
    x = z
    for s, t in zip(times[:-1], pipeline.scheduler.timesteps, strict=True):
        v = pipe.denoiser.velocity(x, torch.tensor(s, dtype=torch.float32), **cond)
        x = pipeline.scheduler.step(v, t, x).prev_sample
    ours = build("unipc", pipe.denoiser, times=times, order=2)(z, **cond)
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(
    "shifting", [{}, {"use_dynamic_shifting": True}], ids=["fixed", "dynamic"]
)
def test_flux(guided, shifting):
    text(foreign.flux(guided, **shifting), {"sampler": "euler"}, {})


def test_flux_with_both_guidances():
    theirs = {"true_cfg_scale": 3.0, "negative_prompt": BAD, "guidance_scale": 2.0}
    ours = {"guidance": 3.0, "negative": BAD, "conditions": {"embedded_guidance": 2.0}}
    text(foreign.flux(), {"sampler": "euler"}, theirs, **ours)


def test_dynamic_shifting_follows_the_size():
    options = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}
    small, large = (adapt(foreign.flux(**options), size=s).spacing for s in (SIZE, (64, 32)))
    assert small["shift"] < large["shift"]
    assert large == adapt(foreign.flux(**options), size=(32, 64)).spacing


# ------------------------------------------------------------------- paths, clocks, words


SCHEDULERS = [
    diffusers.DDPMScheduler,
    diffusers.DDIMScheduler,
    diffusers.PNDMScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.DPMSolverMultistepScheduler,
    diffusers.UniPCMultistepScheduler,
]
VARIANTS = [
    {},
    foreign.BETAS,
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(0.01, 0.2, 50).tolist(), "num_train_timesteps": 50},
    {"rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_scheduler_describes_the_same_path(options, tmp_path):
    paths = set()
    for cls in SCHEDULERS:
        if "rescale_betas_zero_snr" in options and cls is diffusers.PNDMScheduler:
            continue
        scheduler = cls(**options)
        scheduler.save_pretrained(tmp_path)
        paths |= {discrete_path(scheduler.config), discrete_path(cls.load_config(tmp_path))}
    (path,) = paths

    levels = cls.from_pretrained(tmp_path).alphas_cumprod.double()
    t = torch.arange(1, len(levels) + 1, dtype=torch.float64) / len(levels)
    alpha, sigma = path(t)
    seen = levels > 2**-24
    torch.testing.assert_close(alpha[seen], levels[seen].sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))


def test_clocks():
    """Timestep i is our time (i + 1)/N; a flow model is told 1000 σ."""

    denoiser = denoiser_of(foreign.unet(), diffusers.DDPMScheduler().config)
    i = torch.tensor([0, 1, 499, 998, 999])
    told = CLOCKS[denoiser.clock](denoiser.path, (i + 1).double() / 1000)
    assert isinstance(denoiser.path, Discrete)
    torch.testing.assert_close(told, i.double(), rtol=0, atol=1e-9)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    denoiser = denoiser_of(foreign.unet(), scheduler.config)
    told = CLOCKS[denoiser.clock](denoiser.path, scheduler.sigmas[:-1])
    torch.testing.assert_close(told, scheduler.timesteps)


def test_prompts_and_seeds():
    pipe = adapt(foreign.stable(), size=SIZE)
    options = {"guidance": 5, "sampler": "ddpm", "steps": 4}
    pair = pipe(WORDS, seeds=[5, 6], negative=BAD, **options)
    split = pipe(WORDS, seeds=[5, 6], negative=BAD, batch_size=1, **options)
    second = pipe("dog", seeds=[6], negative="ugly", **options)
    torch.testing.assert_close(pair.x, split.x, rtol=0, atol=1e-4)
    torch.testing.assert_close(pair.x[1:], second.x, rtol=0, atol=1e-4)
    assert pair.x.shape == (2, 3, 16, 16) and pair.images[0].size == (16, 16) and pair.nfe == 4

    many = pipe("a cat", n=3, seed=1, guidance=5, sampler="unipc", steps=8)
    assert len(many.x) == 3 and many.sampler == "unipc"
    named = pipe(3, prompt="a cat", seed=1, guidance=5, sampler="unipc", steps=8)
    assert torch.equal(many.x, named.x)
    assert pipe([], steps=2).x.shape == (0, 3, 16, 16)


def test_conditions_by_name_replace_those_of_the_prompt():
    pipe = adapt(foreign.stable_xl(), size=SIZE)
    cond = pipe.conditions(2, prompt=WORDS)
    assert cond["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2

    z = noise(pipe.shape)
    one = pipe.sample(z, prompt=WORDS, steps=3)
    assert torch.equal(one, pipe.sample(z, conditions=cond, steps=3))
    crop = {"time_ids": torch.tensor([[16.0, 16, 8, 8, 16, 16]])}
    assert (one - pipe.sample(z, prompt=WORDS, conditions=crop, steps=3)).abs().max() > 1e-4

    pipe.condition = None
    null = {k: v[:1] * 0 for k, v in cond.items() if k != "time_ids"}
    drawn = pipe(2, conditions=cond, null=null, guidance=2, steps=3, seed=0)
    assert drawn.x.isfinite().all()


def test_gradients_reach_the_prompt_through_the_codec():
    pipe = adapt(foreign.stable(), size=SIZE)
    cond = {k: v.requires_grad_() for k, v in pipe.conditions(2, prompt=WORDS).items()}
    z = noise(pipe.shape)
    loss = pipe.sample(z, conditions=cond, gradient="direct", steps=2).square().mean()
    (slope,) = torch.autograd.grad(loss, cond["prompt_embeds"])
    assert slope.abs().sum() > 0


def test_half_precision_is_close():
    pipeline = foreign.stable()
    whole = adapt(pipeline, size=SIZE)("a cat", seed=0, steps=4, guidance=2).x
    half = adapt(pipeline, size=SIZE).to(torch.bfloat16)("a cat", seed=0, steps=4, guidance=2).x
    assert half.dtype == torch.float32 and (whole - half).abs().mean() < 0.1


def test_skips_of_a_text_unet_fade():
    """What a schedule alters, an adapted U-Net has."""

    net = adapt(foreign.stable()).denoiser.net
    x, cond = torch.randn(1, 4, 8, 8), {"prompt_embeds": torch.randn(1, 12, foreign.TEXT)}
    plain = net(x, torch.tensor(5.0), **cond)
    with net.faded((0.5, 0.5)):
        assert not torch.allclose(plain, net(x, torch.tensor(5.0), **cond))
    assert torch.equal(plain, net(x, torch.tensor(5.0), **cond))


def test_a_codec_goes_both_ways():
    codec = adapt(foreign.stable_3(), size=SIZE).codec
    x = torch.randn(2, 3, 16, 16)
    e = codec.vae.encode(x).latent_dist.mean
    z = codec.encode(x)
    torch.testing.assert_close(z, (e - 0.06) * codec.vae.config.scaling_factor)
    torch.testing.assert_close(codec.decode(z), codec.vae.decode(e).sample, rtol=0, atol=1e-5)


def test_a_job_takes_a_prompt(tmp_path):
    pytest.importorskip("transformers")
    pipe = adapt(foreign.stable(foreign.ddim()))
    options = {"prompt": "a cat", "negative": "bad", "guidance": 5.0, "steps": 3}
    meta = generate(pipe, tmp_path / "o", [1, 2], sampler="ddim", **options)
    assert meta["nfe"] == 3 and len(list((tmp_path / "o" / "images").glob("*.png"))) == 2
