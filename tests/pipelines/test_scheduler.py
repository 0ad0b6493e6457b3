"""Searched schedules in stock pipelines give what our own sampler gives on the same network."""

import copy
from dataclasses import replace
import pickle

from diffusers import (
    DDIMScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from stock import (
    CORRECTED_END,
    FROM_NOISE,
    MIXED,
    PATH,
    Called,
    close,
    ddpm,
    dit,
    named,
    unet,
    watching,
)
from strategies import schedules as any_schedule
import torch

from genflow import SearchedScheduler
from genflow.errors import UserError
from genflow.models import Clipped, Discrete, Preconditioned, Rectified
from genflow.pipelines.remainders import remainder
from genflow.solvers import Sampler, Tableau, tabulate

FLOW = {"prediction_type": "flow_prediction"}

SCHEDULES = {
    "unipc-3": lambda path: named("unipc", 6, path, order=3),
    "dpm-3s": lambda path: named("dpm-3s", 6, path),
    "dpmpp-2m": lambda path: named("dpmpp-2m", 6, path),
    "mixed": lambda path: MIXED,
    "corrected end": lambda path: CORRECTED_END,
    "from noise": lambda path: FROM_NOISE,
    "ddpm": lambda path: named("ddpm", 6, path),
    "half eta": lambda path: named("ddim", 5, path, eta=0.5),
    "a preset's table": lambda path: named("ipndm", 6, path),
    "a tuned table": lambda path: tuned(named("unipc", 6, path)),
}


def tuned(schedule, path=PATH):
    """The table of a schedule with other weights, as gradients leave it."""

    table = tabulate(schedule, path)
    return replace(table, weight=1.03 * table.weight)


def calls(schedule, path=PATH):
    return len((schedule if isinstance(schedule, Tableau) else tabulate(schedule, path)).time)


def run(pipe, schedule, path=PATH, seed=1, **options):
    """The last state of a DDPMPipeline with the schedule."""

    n = calls(schedule, path)
    pipe.scheduler = SearchedScheduler.from_schedules({n: schedule}, **options)
    with watching(pipe.scheduler) as states:
        pipe(batch_size=2, num_inference_steps=n, generator=torch.Generator().manual_seed(seed))
    assert len(states) == n
    return states[-1]


def ours(net, schedule, path=PATH, prediction="noise", seed=1, clip=False):
    """Our own sampler, on the noise that DDPMPipeline draws, unscaled."""

    clock = "thousand" if isinstance(path, Rectified) else "discrete"
    call = Called(lambda x, time: net(x, time).sample)
    denoiser = Preconditioned(call, path, prediction, clock)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((2, 1, 8, 8), generator=generator)
    return Sampler(Clipped(denoiser) if clip else denoiser, schedule)(x, generator=generator)


# ------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm_pipeline_gives_what_our_sampler_gives(name):
    pipe = ddpm()
    schedule = SCHEDULES[name](PATH)
    close(run(pipe, schedule), ours(pipe.unet, schedule))


def test_schedules_differ():
    """Otherwise the agreement above would say nothing."""

    pipe = ddpm()
    ends = [run(pipe, make(PATH)) for make in SCHEDULES.values()]
    for i, a in enumerate(ends):
        for b in ends[i + 1 :]:
            assert (a - b).abs().max() > 1e-3 * a.abs().max()


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [("v_prediction", "v"), ("sample", "data"), ("flow_prediction", "flow")],
)
def test_every_prediction(kind, prediction):
    pipe = ddpm()
    path = Rectified() if prediction == "flow" else PATH
    schedule = named("unipc", 5, path)
    state = run(pipe, schedule, path, prediction_type=kind)
    close(state, ours(pipe.unet, schedule, path, prediction))


def test_a_clipped_data_estimate():
    pipe = ddpm()
    schedule = named("dpmpp-2m")
    state = run(pipe, schedule, clip=True)
    close(state, ours(pipe.unet, schedule, clip=True))
    assert state.abs().max() <= 1


def test_zero_terminal_signal():
    pipe = ddpm()
    like = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    path = Discrete(tuple(like.alphas_cumprod.tolist()))
    schedule = named("unipc", 5, path)
    close(run(pipe, schedule, path, like=like), ours(pipe.unet, schedule, path, "v"))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_dit_pipeline(guidance):
    pipe = dit()
    schedule = named("unipc", 5, order=3)
    pipe.scheduler = SearchedScheduler.from_schedules({5: schedule}, like=pipe.scheduler)
    labels = [3, 7]

    with watching(pipe.scheduler) as states:
        pipe(labels, guidance, torch.Generator().manual_seed(1), 5, output_type="np")

    def call(x, time):
        def answer(label):
            out = pipe.transformer(x, timestep=time.expand(2), class_labels=label).sample
            return out[:, :4]

        known, null = answer(torch.tensor(labels)), answer(torch.tensor([1000, 1000]))
        return null + guidance * (known - null) if guidance > 1 else known

    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    end = Sampler(Preconditioned(Called(call), PATH, "noise", "discrete"), schedule)(x)
    close(states[-1][:2], end)


def test_timesteps_are_the_clock_of_each_stage():
    scheduler = SearchedScheduler.from_schedules({6: MIXED})
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.tolist() == pytest.approx([998, 849, 709, 519, 299, 99])
    assert scheduler.timesteps.dtype == torch.float32 and scheduler.order == 1
    flow = SearchedScheduler.from_schedules({2: named("ddim", 2, Rectified())}, **FLOW)
    flow.set_timesteps(2)
    assert flow.timesteps.tolist() == [1000, 500] and flow.init_noise_sigma == 1


def test_half_precision_states_keep_their_dtype():
    scheduler = SearchedScheduler.from_schedules({6: MIXED})
    scheduler.set_timesteps(6)
    x = torch.randn(1, 4, dtype=torch.bfloat16)
    out = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
    assert isinstance(out, tuple) and out[0].dtype == torch.bfloat16


# ----------------------------------------------------------------------- over and over again


def test_a_run_leaves_nothing_behind():
    pipe = ddpm()
    pipe.scheduler = SearchedScheduler.from_schedules(
        {6: MIXED, 5: named("unipc", 5)}, like=pipe.scheduler
    )

    def image(n):
        generator = torch.Generator().manual_seed(2)
        return pipe(num_inference_steps=n, generator=generator, output_type="pt").images

    first = image(6)
    image(5)
    pipe.scheduler.set_timesteps(6)
    x = torch.randn(3, 2)
    pipe.scheduler.step(x, pipe.scheduler.timesteps[0], x)  # a run broken off
    assert torch.equal(image(6), first)


def test_copies_and_pickles_run_on_their_own():
    scheduler = SearchedScheduler.from_schedules({6: MIXED})
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        twin.set_timesteps(6)
        assert twin.config.schedules == scheduler.config.schedules
        assert scheduler.num_inference_steps is None


def test_lists_of_generators_reach_the_fresh_noise():
    pipe = ddpm()
    pipe.scheduler = SearchedScheduler.from_schedules({6: named("ddpm")})

    def image(*seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        with watching(pipe.scheduler) as states:
            pipe(batch_size=len(seeds), num_inference_steps=6, generator=generators)
        return states[-1]

    close(image(4, 9)[1:], image(9))


# ---------------------------------------------------------------------- from the middle


@settings(max_examples=60, deadline=None)
@given(any_schedule(PATH, ends=True, noisy=True, source=True), st.integers(0, 6))
def test_the_rest_of_any_schedule_can_be_carried_out(schedule, begin):
    rest = remainder(schedule, begin)
    if begin >= len(schedule.steps):
        assert rest is (schedule if begin == 0 else None)
        return
    assert rest.times == schedule.times[begin:]
    tabulate(rest, PATH)


def test_the_rest_keeps_what_it_can():
    whole = named("dpmpp-3m", 10)
    assert remainder(whole, 0) is whole
    assert [s.order for s in remainder(whole, 6).steps] == [1, 2, 2, 1]
    single = named("dpmpp-3s", 9)
    assert remainder(single, 3).steps == single.steps[3:], "a whole group needs no history"


@pytest.mark.parametrize("begin", [1, 2, 4])
def test_a_run_from_the_middle_is_our_sampler_on_the_rest(begin):
    net = unet()
    made = SearchedScheduler.from_schedules({6: MIXED})
    made.set_timesteps(6)
    x, z = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    state = made.add_noise(x, z, made.timesteps[begin].repeat(2))
    t = torch.tensor(MIXED.times[begin])
    torch.testing.assert_close(state, PATH.perturb(x, z, t), atol=1e-5, rtol=1e-5)

    call = Called(lambda x, time: net(x, time).sample)
    sampler = Sampler(Preconditioned(call, PATH, "noise", "discrete"), remainder(MIXED, begin))
    expected = sampler(state)

    for step in made.timesteps[begin:]:  # without a begin index: the timestep tells
        state = made.step(call(state, step), step, state).prev_sample
    close(state, expected)


def test_a_table_has_no_rest():
    scheduler = SearchedScheduler.from_schedules({6: tuned(named("unipc", 6))})
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(UserError, match="begins at stage 2 of a table"):
        scheduler.step(x, scheduler.timesteps[2], x)


def test_nothing_is_left_at_the_extra_stage_of_a_corrected_end():
    made = SearchedScheduler.from_schedules({4: CORRECTED_END})
    made.set_timesteps(4)
    made.set_begin_index(3)
    x = torch.randn(2, 3)
    assert torch.equal(made.step(x, made.timesteps[3], x).prev_sample, x)


# -------------------------------------------------------------------------- the fallback


def test_the_fallback_runs_where_no_schedule_is_held():
    pipe = ddpm()
    made = SearchedScheduler.from_schedules({6: MIXED}, like=pipe.scheduler, fallback="unipc")
    pipe.scheduler = made
    with watching(made) as states:
        pipe(batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(1))
    close(states[-1], ours(pipe.unet, named("unipc", 5)))

    made.set_timesteps(timesteps=[900.5, 500, 20])
    assert made.timesteps.tolist() == [900.5, 500, 20] and made.num_inference_steps == 3
    made.set_timesteps(6)
    assert made.timesteps[1] == 849


def test_the_fallback_of_flow_models_knows_the_shift():
    made = SearchedScheduler(**FLOW, fallback="euler", shift=3.0)
    made.set_timesteps(2)
    assert made.timesteps.tolist() == pytest.approx([1000, 750])
    made.set_timesteps(2, mu=0.0)
    assert made.timesteps.tolist() == pytest.approx([1000, 500])


def test_the_fallback_begins_in_the_middle():
    made = SearchedScheduler(fallback="unipc")
    made.set_timesteps(4)
    made.set_begin_index(2)
    x = torch.randn(2, 3)
    for t in made.timesteps[2:]:
        x = made.step(0.1 * x, t, x).prev_sample
    assert torch.isfinite(x).all() and made.step_index == 4 and made.begin_index == 2
