"""The config of a searched scheduler: files, the configs of others, values that are refused."""

import json
from pathlib import Path
import subprocess
import sys

from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
import pytest
from stock import CORRECTED_END, MIXED, PATH, SD, ddpm, named
import torch

from genflow import SearchedScheduler
from genflow.errors import UserError
from genflow.models import Rectified
from genflow.solvers import Corrector, SolverSchedule, Step, tabulate

ROOT = Path(__file__).parents[2]
FLOW = {"prediction_type": "flow_prediction"}


# --------------------------------------------------------------------- files, and configs


@pytest.mark.parametrize(
    "held", [MIXED, tabulate(named("unipc", 6), PATH)], ids=["words", "table"]
)
def test_saved_and_loaded_again_bit_by_bit(held, tmp_path):
    pipe = ddpm()
    pipe.scheduler = SearchedScheduler.from_schedules({6: held}, like=pipe.scheduler)
    pipe.save_pretrained(tmp_path / "p")
    again = DDPMPipeline.from_pretrained(tmp_path / "p")

    assert type(again.scheduler) is SearchedScheduler
    index = json.loads((tmp_path / "p" / "model_index.json").read_text())
    assert index["scheduler"] == ["genflow", "SearchedScheduler"]

    def image(pipe):
        generator = torch.Generator().manual_seed(0)
        return pipe(num_inference_steps=6, generator=generator, output_type="pt").images

    assert torch.equal(image(pipe), image(again))


def test_the_config_is_plain_json(tmp_path):
    def refuse(name):
        raise AssertionError(name)

    SearchedScheduler.from_schedules({6: MIXED, 4: CORRECTED_END}).save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    config = json.loads(text, parse_constant=refuse)
    assert config["format_version"] == 1 and set(config["schedules"]) == {"4", "6"}
    assert config["schedules"]["6"]["times"] == list(MIXED.times)
    assert config["schedules"]["4"]["steps"] == [{}, {"order": 2}, {"correct": {}}]

    again = SearchedScheduler.from_pretrained(tmp_path)
    assert again.config.schedules == config["schedules"]


@pytest.mark.slow
def test_a_stock_pipeline_loads_after_import_genflow_alone(tmp_path):
    pipe = ddpm()
    pipe.scheduler = SearchedScheduler.from_schedules({6: MIXED}, like=pipe.scheduler)
    pipe.save_pretrained(tmp_path / "p")
    code = (
        "import sys, genflow\n"
        "assert 'diffusers' not in sys.modules\n"
        "from diffusers import DDPMPipeline\n"
        f"pipe = DDPMPipeline.from_pretrained({str(tmp_path / 'p')!r})\n"
        "print(len(pipe(num_inference_steps=6).images), type(pipe.scheduler).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["1", "genflow"], done.stderr


def loaded(scheduler, folder):
    scheduler.save_pretrained(folder)
    return type(scheduler).from_pretrained(folder)


@pytest.mark.parametrize(
    "stock",
    [
        lambda: DDIMScheduler(),
        lambda: DDIMScheduler(**SD, prediction_type="v_prediction"),
        lambda: LCMScheduler(),
        lambda: DPMSolverMultistepScheduler(
            trained_betas=torch.linspace(0.001, 0.1, 50).tolist(), num_train_timesteps=50
        ),
    ],
    ids=["defaults", "stable diffusion", "LCM", "trained"],
)
def test_configs_made_in_memory_and_loaded_say_the_same(stock, tmp_path):
    stock = stock()
    for like in (stock, loaded(stock, tmp_path)):
        for made in (
            SearchedScheduler.from_schedules({6: MIXED}, like=like),
            SearchedScheduler.from_config(like.config, schedules={6: MIXED}),
        ):
            torch.testing.assert_close(made.alphas_cumprod, stock.alphas_cumprod)
            assert made.config.prediction_type == stock.config.prediction_type
            assert made.config.schedules == {"6": made.config.schedules["6"]}
            assert len(made) == stock.config.num_train_timesteps


@pytest.mark.parametrize(
    "stock",
    [
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        ),
    ],
)
def test_configs_of_flow_models(stock, tmp_path):
    for like in (stock(), loaded(stock(), tmp_path)):
        made = SearchedScheduler.from_schedules({4: named("ddim", 4, Rectified())}, like=like)
        assert made.path == Rectified() and made.config.prediction_type == "flow_prediction"


def test_other_schedulers_keep_the_searched_schedules(tmp_path):
    made = SearchedScheduler.from_schedules({6: MIXED}, beta_end=0.015)
    there = DPMSolverMultistepScheduler.from_config(made.config)
    back = SearchedScheduler.from_config(there.config)
    assert there.config.beta_end == back.config.beta_end == 0.015
    assert back.config.schedules == made.config.schedules


def test_schedules_of_another_path_are_moved():
    source = named("unipc", 5, Rectified(), start=0.99, stop=0.01, grid="logsnr")
    made = SearchedScheduler.from_schedules({5: source}, path=Rectified())
    made.set_timesteps(5)
    lam = Rectified().lam(torch.tensor(source.times[:5], dtype=torch.float64))
    t = (made.timesteps.double() + 1) / 1000
    torch.testing.assert_close(PATH.lam(t), lam, atol=1e-4, rtol=1e-4)


def test_tables_of_another_path_are_refused():
    table = tabulate(named("unipc", 5, Rectified(), start=0.99), Rectified())
    with pytest.raises(UserError, match="is a table of Rectified, and the network lives on Disc"):
        SearchedScheduler.from_schedules({5: table}, path=Rectified())


# --------------------------------------------------------------------------- bad input


def test_a_number_of_steps_that_is_not_held_lists_those_that_are():
    made = SearchedScheduler.from_schedules({6: MIXED, 4: CORRECTED_END})
    with pytest.raises(UserError, match="is 7: schedules are held for 4, 6 steps.*fallback"):
        made.set_timesteps(7)
    with pytest.raises(UserError, match="no number of steps"):
        SearchedScheduler().set_timesteps(7)
    with pytest.raises(UserError, match="timesteps are given.*fallback"):
        made.set_timesteps(timesteps=[900, 10])


ONE = {"times": [1, 0], "steps": [{}]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedules": {5: MIXED}}, "under 5 a schedule with 6 calls"),
        ({"schedules": {3: CORRECTED_END}}, "under 3 a schedule with 4 calls"),
        ({"schedules": {"six": MIXED}}, "holds one under 'six'"),
        ({"schedules": {6: [1, 2]}}, r"schedules\['6'\] is a list"),
        ({"schedules": {1: {"time": [1], "weight": [[1]]}}}, r"table schedules\['1'\] lacks"),
        ({"schedules": {1: {"times": [1, 0], "steps": [{"ordr": 1}]}}}, "did you mean 'order'"),
        ({"schedules": {1: {"times": [float("nan"), 0], "steps": [{}]}}}, "finite"),
        ({"schedules": {1: {"times": [1, 0.1], "steps": [{}]}}, "format_version": 9}, "version 9"),
        ({"schedules": {1: {"times": [1, 0], "steps": [{"predict": "empirical"}]}}}, "statistics"),
        ({"schedules": {1: {"times": [1, 0], "steps": [{"source": "mean"}]}}}, "mean"),
        ({"schedules": {1: {**ONE, "path": {"class": "Rectified"}}}}, "is for Rectified"),
        ({"schedules": {1: {"times": [1, 0], "steps": [{"change": {"skips": [0.5]}}]}}}, "skip"),
        ({"schedules": {1: {"times": [1, 0], "steps": [{"change": {"drop": ["a"]}}]}}}, "blocks"),
        (
            {"schedules": {1: {"times": [1, 0], "steps": [{"change": {"guidance": False}}]}}},
            "step 0 switches guidance off",
        ),
        ({"beta_start": float("inf")}, "beta_start cannot be written to JSON"),
        ({"trained_betas": [0.1, float("nan")]}, "trained_betas cannot be written"),
        ({"beta_schedule": "linaer"}, "beta_schedule is 'linaer'"),
        ({"prediction_type": "noise"}, "prediction_type is 'noise'"),
        ({"fallback": "unicp"}, "did you mean 'unipc'"),
        ({"fallback": "dopri5"}, "chooses its own steps"),
        ({**FLOW, "num_train_timesteps": 500}, "use 1000"),
    ],
)  # fmt: skip
def test_bad_values_get_one_sentence(options, words):
    with pytest.raises(UserError, match=words) as caught:
        SearchedScheduler(**options)
    assert "\n" not in str(caught.value)


def test_relaxations_that_are_no_numbers_are_refused():
    step = Step(correct=Corrector(relax=float("nan")))
    with pytest.raises(UserError, match="finite"):
        SearchedScheduler.from_schedules({3: SolverSchedule((1, 0.5, 0.1), (step, Step(order=2)))})


def test_bad_calls_get_one_sentence():
    made = SearchedScheduler.from_schedules({6: MIXED})
    x = torch.randn(1, 2)
    with pytest.raises(UserError, match="before set_timesteps"):
        made.step(x, 999, x)
    made.set_timesteps(6)
    for t in made.timesteps:
        made.step(x, t, x)
    with pytest.raises(UserError, match="more often than the 6 timesteps"):
        made.step(x, 0, x)
    with pytest.raises(UserError, match="calls the network 10 times in 5 steps"):
        SearchedScheduler(**FLOW, fallback="heun").set_timesteps(5)
    with pytest.raises(UserError, match="variance-exploding"):
        SearchedScheduler.from_schedules({6: MIXED}, like=EDMEulerScheduler())
    with pytest.raises(UserError, match="like is a int"):
        SearchedScheduler.from_schedules({6: MIXED}, like=3)


def test_the_bases_are_found_on_the_module_that_diffusers_looks_at():
    import diffusers

    import genflow

    for name in ("SchedulerMixin", "ModelMixin", "DiffusionPipeline"):
        assert getattr(genflow, name) is getattr(diffusers, name)
        assert name not in genflow.__all__
    assert SearchedScheduler.__module__ == "genflow"
