"""Searched schedules in Stable Diffusion: text to image, image to image, guidance, call-backs."""

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from stock import Called, close, stable_diffusion, stable_diffusion_xl, stirred, vae

from genflow import SearchedScheduler
from genflow.models import Preconditioned, Rectified
from genflow.pipelines.remainders import remainder
from genflow.solvers import Corrector, Sampler, SolverSchedule, Step, schedule_for

FIVE = SolverSchedule(
    (0.998, 0.83, 0.61, 0.33, 0.12, 0.0),
    (
        Step(predict="noise", correct=Corrector()),
        Step(order=2, relax=0.1, correct=Corrector(relax=-0.05)),
        Step(order=2, predict="noise", start=1, points=(0,)),
        Step(order=3),
        Step(),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def pipe(folder):
    pipe = stable_diffusion(folder)
    pipe.scheduler = SearchedScheduler.from_schedules({5: FIVE}, like=pipe.scheduler)
    return pipe


def noise(n=1, seed=0, size=8):
    return torch.randn((n, 4, size, size), generator=torch.Generator().manual_seed(seed))


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def call(pipe, **options):
    common = {"num_inference_steps": 5, "output_type": "latent", "height": 16, "width": 16}
    common["height"] = common["width"] = 8 * pipe.vae_scale_factor
    return pipe("a fox", **common | options).images


def denoiser(pipe, guidance, added=None):
    """The network of a pipeline as ours, with guidance."""

    known, null, *pooled = pipe.encode_prompt(
        "a fox", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )

    def answer(x, time, text, more=None):
        text = text.expand(len(x), -1, -1)
        more = more and {k: v.expand(len(x), -1) for k, v in more.items()}
        return pipe.unet(x, time, encoder_hidden_states=text, added_cond_kwargs=more).sample

    def network(x, time):
        if pooled:
            size = torch.tensor([[8.0, 8, 0, 0, 8, 8]])
            more = [{"text_embeds": p, "time_ids": size} for p in pooled]
        else:
            more = [None, None]
        strong, weak = answer(x, time, known, more[0]), answer(x, time, null, more[1])
        return weak + guidance * (strong - weak)

    return Preconditioned(Called(network), pipe.scheduler.path, "noise", "discrete")


def start(pipe, x):
    """What our sampler would draw: σ z at the first time."""

    t = torch.tensor(FIVE.times[0])
    return pipe.scheduler.path(t)[1] * x


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_text_to_image_gives_what_our_sampler_gives(pipe, guidance):
    state = call(pipe, latents=noise(2), num_images_per_prompt=2, guidance_scale=guidance)
    close(state, Sampler(denoiser(pipe, guidance), FIVE)(start(pipe, noise(2))))
    other = call(pipe, latents=noise(2), num_images_per_prompt=2, guidance_scale=3.0)
    assert (state - other).abs().max() > 1e-3 * state.abs().max(), "guidance does something"


def test_stable_diffusion_xl(folder):
    pipe = stable_diffusion_xl(folder)
    pipe.scheduler = SearchedScheduler.from_schedules({5: FIVE}, like=pipe.scheduler)
    state = call(pipe, latents=noise(), guidance_scale=5.0)
    side = 8 * pipe.vae_scale_factor
    assert side == 8, "the sizes below are those of the pictures"
    close(state, Sampler(denoiser(pipe, 5.0), FIVE)(start(pipe, noise())))


def test_image_to_image_is_our_sampler_on_the_rest(pipe):
    again = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    x = noise(seed=3)
    common = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "latent"}
    seen = []

    def watch(pipe, i, t, tensors):
        seen.append(float(t))
        return {}

    state = again(
        "a fox",
        image=x,
        strength=0.6,
        generator=generators(4),
        callback_on_step_end=watch,
        **common,
    ).images
    assert seen == pytest.approx([609, 329, 119])
    z = torch.randn(x.shape, generator=generators(4)[0])
    began = pipe.scheduler.path.perturb(x, z, torch.tensor(FIVE.times[2]))
    close(state, Sampler(denoiser(pipe, 3.0), remainder(FIVE, 2))(began))


def test_call_backs_see_every_step(pipe):
    seen = []

    def watch(pipe, i, t, tensors):
        seen.append((i, float(t), tensors["latents"].clone()))
        return tensors

    state = call(pipe, latents=noise(), callback_on_step_end=watch)
    assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == pytest.approx([997, 829, 609, 329, 119])
    assert torch.equal(seen[-1][2], state)


def test_lists_of_generators(pipe):
    ancestral = schedule_for("ddpm", pipe.scheduler.path, 4)
    pipe.scheduler = SearchedScheduler.from_schedules({4: ancestral}, like=pipe.scheduler)
    both = call(pipe, num_inference_steps=4, num_images_per_prompt=2, generator=generators(1, 2))
    alone = call(pipe, num_inference_steps=4, generator=generators(2))
    close(both[1:], alone)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_saved_and_loaded_again_bit_by_bit(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "p")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is SearchedScheduler
    assert again.scheduler.config.beta_schedule == "scaled_linear"
    assert torch.equal(call(pipe, latents=noise()), call(again, latents=noise()))
    assert torch.equal(call(pipe, latents=noise()), call(pipe, latents=noise()))


def test_pipelines_pass_times_to_the_fallback(pipe):
    pipe.scheduler = SearchedScheduler.from_config(pipe.scheduler.config, fallback="dpmpp-2m")
    times = [900, 600.5, 200]
    state = call(pipe, latents=noise(), timesteps=times)
    path = pipe.scheduler.path
    table = schedule_for("dpmpp-2m", path, times=(*((t + 1) / 1000 for t in times), 0.0))
    sampler = Sampler(denoiser(pipe, 7.5), table)
    close(state, sampler(path(sampler.tableau.time[0])[1].float() * noise()))
    with pytest.raises(ValueError, match="sigmas"):
        call(pipe, sigmas=[10.0, 1.0, 0.0])


def test_stable_diffusion_3_is_told_one_thousand_sigma():
    """A flow model: its clock, its path, and the shift that a searched schedule has no need of."""

    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )
    like = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    schedule = schedule_for("unipc", Rectified(), 4)
    scheduler = SearchedScheduler.from_schedules({4: schedule}, like=like)
    pipe = StableDiffusion3Pipeline(stirred(net), scheduler, vae(), *[None] * 6)
    pipe.set_progress_bar_config(disable=True)
    text, pooled = torch.randn(1, 5, 16), torch.randn(1, 16)
    common = {"height": 8, "width": 8, "guidance_scale": 1.0, "output_type": "latent"}
    state = pipe(
        latents=noise(),
        num_inference_steps=4,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        **common,
    ).images

    def network(x, time):
        return net(
            x,
            timestep=time.expand(len(x)),
            encoder_hidden_states=text,
            pooled_projections=pooled,
        ).sample

    ours = Preconditioned(Called(network), Rectified(), "flow", "thousand")
    close(state, Sampler(ours, schedule)(noise()))
