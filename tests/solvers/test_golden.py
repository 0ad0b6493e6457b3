"""Agreement with the official samplers of DPM-Solver, UniPC, USF, DEIS and iPNDM, case by case."""

from oracles import (
    golden,
    third_order_multistep,
    usf_exact,
    usf_path,
    usf_schedule,
    usf_start,
    usf_statistics,
    usf_times,
)
import pytest
import torch

from genflow.models import VariancePreserving
from genflow.solvers import Sampler, SolverSchedule, Statistics, Step, build

CASES = golden("usf")[0]["cases"]
OUT = {c["id"]: x for c, x in zip(CASES, golden("usf")[1]["out"], strict=True)}
WRONG = [c for c in CASES if c.get("wrong")]
RIGHT = [c for c in CASES if not c.get("wrong")]


def name(case):
    return case["id"].replace("/gm2d", "")


def sampler_of(case):
    """The sampler of this package that a case describes."""

    denoiser, s = usf_exact(case), case["settings"]
    family, times = case["family"], usf_times(case)

    if "decisions" in case:
        mean = golden("usf")[1]["mean"]
        return Sampler(denoiser, usf_schedule(case), statistics=usf_statistics(case), mean=mean)
    if family == "dpm-solver-official":
        options = {
            "order": s["order"],
            "predict": "data" if s["algorithm_type"].endswith("++") else "noise",
            "method": s["method"],
            "variant": s["solver_type"],
        }
        if s["method"] == "multistep":
            options["lower_final"] = s["lower_order_final_active"]
        sampler = build("dpm", denoiser, times=times, **options)
    elif family == "unipc-official":
        sampler = build(
            "unipc",
            denoiser,
            times=times,
            order=s["order"],
            variant=s["variant"],
            predict=s["prediction_type"].split("_")[0],
            lower_final=s["lower_order_final"],
        )
    elif family == "deis-rhoab":
        sampler = build("deis", denoiser, times=times, order=s["max_order"], variable="rho")
    elif family == "ipndm":
        sampler = build("ipndm", denoiser, times=times, order=s["max_order"])
    else:
        order, lower = s["solver_order"], s["lower_order_final"]
        sampler = build("deis", denoiser, times=times, order=order, lower_final=lower)

    if case.get("denoise_to_zero"):
        known = sampler.schedule
        longer = SolverSchedule((*known.times, 0.0), (*known.steps, Step()))
        return Sampler(denoiser, longer)

    return sampler


def test_every_family_is_there():
    families = {c["family"] for c in CASES}
    assert len(families) == 9 and len(CASES) > 300
    assert len(WRONG) == 20
    assert {c["settings"]["order"] for c in WRONG} == {3}


@pytest.mark.parametrize("case", RIGHT, ids=name)
def test_agrees(case):
    sampler = sampler_of(case)
    torch.testing.assert_close(sampler(usf_start(case)), OUT[case["id"]], rtol=0, atol=1e-10)
    assert sampler.nfe == case["calls"]


@pytest.mark.parametrize("case", WRONG, ids=name)
def test_official_third_order_multistep_halves_the_second_derivative(case):
    """The published output is that of the halved rule; ours is the whole one, and differs."""

    s, x, denoiser = case["settings"], usf_start(case), usf_exact(case)
    options = {
        "predict": "data" if s["algorithm_type"].endswith("++") else "noise",
        "lower_final": s["lower_order_final_active"],
    }
    ours = sampler_of(case)(x)
    half, whole = (
        third_order_multistep(denoiser, x, usf_times(case), whole=w, **options)
        for w in (False, True)
    )

    torch.testing.assert_close(half, OUT[case["id"]], rtol=0, atol=1e-10)
    torch.testing.assert_close(ours, whole, rtol=0, atol=1e-10)
    assert (ours - OUT[case["id"]]).abs().max() > 1e-4


@pytest.mark.parametrize("calls", [5, 8, 10])
def test_third_order_multistep_is_usfs(calls):
    end = f"nfe{calls}/dpmpp-multistep-o3"
    case = next(c for c in CASES if c["family"] == "usf-empirical" and c["id"].endswith(end))
    lower = case["decisions"]["orders"][-1] == 1
    ours = build("dpmpp-3m", usf_exact(case), times=usf_times(case), lower_final=lower)
    torch.testing.assert_close(ours(usf_start(case)), OUT[case["id"]], rtol=0, atol=1e-10)


def test_usf_leaves_out_the_relaxation_of_unipcs_first_corrector():
    """USF's converter drops B(h) there; UniPC has it, and so has our preset."""

    pairs = [
        (c, by)
        for c in CASES
        if c["family"] == "usf-empirical" and (by := c.get("compare", "")).startswith("unipc/")
    ]
    assert pairs
    for case, official in pairs:
        schedule = usf_schedule(case)
        assert schedule.steps[0].correct.relax == 0
        assert (OUT[case["id"]] - OUT[official]).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["data", "noise"])
def test_degenerate_statistics_are_the_usual_predictions(kind):
    """(l, s, b) = (1, 0, 0) is the data solver and (0, −1, 0) the noise solver, to O(grid²)."""

    case = {"schedule": "vp", "settings": {"statistics": f"ems/gm2d/vp/{kind}"}}
    fine, x, denoiser = usf_statistics(case), golden("usf")[1]["xT"], usf_exact(case)
    lam = torch.linspace(-4, 3, 9, dtype=torch.float64)
    times = VariancePreserving().inverse(lam).tolist()

    def solve(predict, **options):
        steps = [Step(order=min(i + 1, 3), predict=predict) for i in range(8)]
        return Sampler(denoiser, SolverSchedule(times, steps), **options)(x)

    plain = solve(kind)
    errors = []

    for every in (1, 2, 4):
        columns = (c[::every].contiguous() for c in (fine.lam, fine.l, fine.s, fine.b))
        other = solve("empirical", statistics=Statistics(*columns))
        errors.append(float((plain - other).abs().max()))

    assert errors[0] < 2e-4
    assert errors[1] / errors[0] > 3 and errors[2] / errors[1] > 3


def test_field():
    """The noise estimate of the exact denoiser, against the golden one."""

    _, arrays = golden("usf")
    x, t, eps = (arrays[f"field/{k}"] for k in ("x", "t", "eps"))
    path = usf_path({"schedule": "vp"})
    data = usf_exact({"schedule": "vp"})(x, t)
    alpha, sigma = (c[:, None] for c in path(t))
    torch.testing.assert_close((x - alpha * data) / sigma, eps, rtol=0, atol=1e-11)
