"""Altered steps in a sampler: against loops written out, and what is refused."""

import copy
import json

import pytest
import torch

from genflow.errors import UserError
from genflow.models import Clipped, Denoiser, Guided, Preconditioned, VariancePreserving
from genflow.nn import MLP, UNet, altered, blocks_of
from genflow.solvers import (
    Alteration,
    Corrector,
    Sampler,
    SolverSchedule,
    Step,
    schedule_for,
    stack,
    tabulate,
)
from genflow.solvers.alterations import block_plan

PATH = VariancePreserving()
MID, LOW, ATT = "mid_block.resnets.0", "down_blocks.1.resnets.0", "mid_block.attentions.0"
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([0, 1])


def network(seed=0):
    torch.manual_seed(seed)
    net = UNet(8, 3, widths=(8, 16), layers=1, attention=(), groups=4, classes=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def denoiser():
    return Preconditioned(network(), PATH, "v")


def schedule(*changes, **last):
    times = schedule_for("ddim", PATH, len(changes)).times
    steps = [Step(change=c) for c in changes]
    return SolverSchedule(times, (*steps[:-1], Step(change=changes[-1], **last)))


KEEP = Alteration()
CHANGES = (
    Alteration(drop=(ATT,)),
    Alteration(reuse=(MID,)),
    KEEP,
    Alteration(reuse=(MID, LOW), drop=(ATT,)),
)


def by_hand(denoiser, made, calls):
    """DDIM with its row written out; `calls` answers for the denoiser at a step."""

    x, (alpha, sigma) = X, PATH(torch.tensor(made.times, dtype=torch.float64))
    for i in range(len(made.steps)):
        D = calls(i, x, torch.tensor(made.times[i], dtype=torch.float32))
        p = float(sigma[i + 1] / sigma[i])
        x = p * x + float(alpha[i + 1] - alpha[i] * p) * D
    return x


# What each block does at the four steps of CHANGES: keep where a later step reuses it.
MODES = (
    {ATT: "drop", MID: "keep"},
    {MID: "reuse"},
    {MID: "keep", LOW: "keep"},
    {MID: "reuse", LOW: "reuse", ATT: "drop"},
)


def test_a_plan_remembers_what_a_later_step_reuses_and_nothing_else():
    assert block_plan(CHANGES) == list(MODES)
    twice = [KEEP, Alteration(reuse=("a",)), Alteration(drop=("a",)), Alteration(reuse=("a",))]
    assert block_plan(twice) == [{"a": "keep"}, {"a": "reuse"}, {"a": "drop"}, {"a": "reuse"}]
    assert block_plan([KEEP, KEEP]) == [{}, {}]


def test_a_trajectory_equals_its_loop(denoiser):
    memory = {}

    def call(i, x, t):
        with torch.no_grad(), altered(denoiser.net.model, MODES[i], memory):
            return denoiser(x, t, label=LABEL)

    made = schedule(*CHANGES)
    sampler = Sampler(denoiser, made)
    wanted = by_hand(denoiser, made, call)
    torch.testing.assert_close(sampler(X, label=LABEL), wanted, rtol=1e-4, atol=1e-5)
    full = Sampler(denoiser, schedule(*[KEEP] * 4))(X, label=LABEL)
    assert (full - wanted).abs().max() > 1e-2
    assert sampler.nfe == made.nfe == 4


def test_trajectories_share_nothing(denoiser):
    sampler = Sampler(denoiser, schedule(*CHANGES))
    first = sampler(X, label=LABEL)
    sampler(X[:1] + 1, label=LABEL[:1])
    assert torch.equal(sampler(X, label=LABEL), first)
    assert torch.equal(copy.deepcopy(sampler)(X, label=LABEL), first)
    assert not any("forward" in vars(m) for m in denoiser.modules())

    with pytest.raises(RuntimeError):
        sampler(X[:, :2], label=LABEL)
    assert not any("forward" in vars(m) for m in denoiser.modules())
    assert torch.equal(sampler(X, label=LABEL), first)


def test_nothing_altered_is_bit_equal_and_does_not_touch_the_network(denoiser, monkeypatch):
    plain = Sampler(denoiser, schedule_for("ddim", PATH, 3))
    monkeypatch.setattr(type(denoiser.net), "altered", None)
    ones = Sampler(denoiser, schedule(Alteration((1.0, 1.0)), KEEP, KEEP))
    assert ones.tableau.changes == () and torch.equal(ones(X, label=LABEL), plain(X, label=LABEL))


# ---------------------------------------------------------------------------- guidance


class Nulled(Denoiser):
    """The same network with no class: guidance in two passes of one network."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.path = inner, inner.path

    def forward(self, x_t, t, label=None):
        return self.inner(x_t, t)


@pytest.mark.parametrize("way", ["one doubled batch", "two passes"])
def test_guidance_keeps_a_branch_for_each_pass(denoiser, way):
    """The loop calls the network for each estimate alone, with a memory of its own."""

    w, strong, weak = 2.5, {}, {}

    def call(i, x, t):
        answers = []
        for label, memory in ((LABEL, strong), (None, weak)):
            with torch.no_grad(), altered(denoiser.net.model, MODES[i], memory):
                answers.append(denoiser(x, t, label=label))
        return answers[1] + w * (answers[0] - answers[1])

    two = {"guide": Nulled(denoiser)} if way == "two passes" else {"null": {"label": 2}}
    made = schedule(*CHANGES)
    guided = Sampler(Guided(denoiser, w, **two), made)
    wanted = by_hand(denoiser, made, call)
    torch.testing.assert_close(guided(X, label=LABEL), wanted, rtol=1e-4, atol=1e-4)
    strong, weak = (shared := {}), shared
    assert (by_hand(denoiser, made, call) - wanted).abs().max() > 1e-2


def test_a_step_without_guidance_calls_the_conditional_network_alone(denoiser):
    sizes = []
    hook = denoiser.net.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    off = Alteration(guidance=False)
    guided = Guided(denoiser, 2.5, null={"label": 2})
    made = schedule(KEEP, off, KEEP)
    mine = Sampler(guided, made)(X, label=LABEL)
    hook.remove()
    assert sizes == [4, 2, 4]

    def call(i, x, t):
        with torch.no_grad():
            return (denoiser if i == 1 else guided)(x, t, label=LABEL)

    torch.testing.assert_close(mine, by_hand(denoiser, made, call), rtol=1e-4, atol=1e-5)

    clipped = Sampler(Clipped(guided), schedule(off, off))(X, label=LABEL)
    alone = Sampler(Clipped(denoiser), schedule(KEEP, KEEP))(X, label=LABEL)
    assert torch.equal(clipped, alone)
    bare = Sampler(denoiser, schedule(off, KEEP))
    assert torch.equal(
        bare(X, label=LABEL), Sampler(denoiser, schedule(KEEP, KEEP))(X, label=LABEL)
    )
    assert mine.shape == X.shape and made.nfe == 3


def test_an_interval_of_guidance_may_not_cut_a_reuse(denoiser):
    half = Guided(denoiser, 2.0, null={"label": 2}, interval=(0.7, 1.0))
    sampler = Sampler(half, schedule(KEEP, Alteration(reuse=(MID,))))
    with pytest.raises(UserError, match="guidance may not begin or end between the two"):
        sampler(X, label=LABEL)


# ---------------------------------------------------------------------------- other places


def test_gradients_flow_through_a_reused_branch(denoiser):
    """Against finite differences, in double precision, along one direction."""

    double = Preconditioned(copy.deepcopy(denoiser.net).double(), PATH, "v")
    sampler = Sampler(double, schedule(*CHANGES), "direct")
    x = X.double().requires_grad_()
    v = torch.randn(X.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value(x):
        return sampler(x, label=LABEL).square().sum()

    (grad,) = torch.autograd.grad(value(x), x)
    h = 1e-5
    with torch.no_grad():
        slope = (value(x + h * v) - value(x - h * v)) / (2 * h)
    torch.testing.assert_close((grad * v).sum(), slope, rtol=1e-6, atol=1e-6)


def test_the_call_that_corrects_the_last_step_is_altered_like_it(denoiser):
    made = schedule(KEEP, Alteration(reuse=(MID,)), correct=Corrector())
    table = tabulate(made, PATH)
    assert table.changes == (KEEP, made.steps[1].change, made.steps[1].change)
    assert Sampler(denoiser, made)(X, label=LABEL).isfinite().all()


def test_a_stage_without_a_call_runs_nothing(denoiser):
    steps = (Step(source="noise"), Step(change=Alteration(reuse=(MID,))))
    made = SolverSchedule(schedule_for("ddim", PATH, 2).times, steps)
    with pytest.raises(UserError, match="step 1 reuses block 'mid_block.resnets.0', which no"):
        Sampler(denoiser, made)
    dropped = (Step(source="noise", change=Alteration(drop=(MID,))), Step())
    assert tabulate(SolverSchedule(made.times, dropped), PATH).changes == ()


def test_a_population_shares_altered_calls_or_is_refused(denoiser):
    one, two = schedule(*CHANGES), schedule(*CHANGES)
    two = SolverSchedule((*two.times[:2], 0.4, *two.times[3:]), two.steps)
    tables = [tabulate(s, PATH) for s in (one, two)]
    both = Sampler(denoiser, stack(tables, 2))(torch.cat([X, X]), label=LABEL.repeat(2))
    for s, mine in zip((one, two), both.split(2), strict=True):
        torch.testing.assert_close(
            mine, Sampler(denoiser, s)(X, label=LABEL), rtol=1e-4, atol=1e-5
        )

    plain = tabulate(schedule(*[KEEP] * 4), PATH)
    with pytest.raises(UserError, match="alter it differently: put schedules with the same"):
        stack([tables[0], plain], 2)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((Alteration(reuse=(MID,)), KEEP), "step 0 reuses block 'mid_block.resnets.0', which no"),
        ((Alteration(drop=(MID,)), Alteration(reuse=(MID,))), "step 1 reuses block"),
        ((KEEP, Alteration(drop=("mid_block.resnet.0",))), "did you mean 'mid_block.resnets.0'"),
        (
            (Alteration(guidance=False), Alteration(reuse=(MID,))),
            "step 1 reuses block 'mid_block.resnets.0' from step 0, and only one of the two is",
        ),
    ],
)
def test_schedules_that_cannot_be(denoiser, changes, words):
    with pytest.raises(UserError, match=words):
        Sampler(denoiser, schedule(*changes))


def test_networks_that_cannot(denoiser):
    left_out = schedule(KEEP, Alteration(drop=("blocks.0",)))
    with pytest.raises(UserError, match="a VectorMLP has no blocks to drop or reuse"):
        Sampler(Preconditioned(MLP(2, 16, 1), PATH, "v").eval(), left_out)
    with pytest.raises(UserError, match="a Preconditioned has none with blocks to drop or reuse"):
        Sampler(Preconditioned(torch.nn.Linear(2, 2), PATH, "v"), left_out)

    training = copy.deepcopy(denoiser).train()
    with pytest.raises(UserError, match="in training mode"):
        Sampler(training, schedule(KEEP, Alteration(drop=(MID,))))


# ---------------------------------------------------------------------------- the record


def test_json():
    made = schedule(
        KEEP, Alteration(drop=(MID, ATT), reuse=(LOW,)), Alteration((0.5,), guidance=False)
    )
    text = made.to_json()
    assert SolverSchedule.from_json(text) == made
    assert (
        f'"change": {{"drop": ["{ATT}", "{MID}"], "reuse": ["{LOW}"]}}' in text
        and '"change": {"skips": [0.5], "guidance": false}' in text
        and text.count("change") == 2
    )
    assert Alteration(drop=(ATT, MID)) == Alteration(drop=[MID, ATT])
    assert hash(made) == hash(SolverSchedule.from_json(text))
    assert made.nfe == 3 and bool(Alteration(guidance=False)) and bool(Alteration(reuse=("a",)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": "mid"}, "change.drop is 'mid': a list of names"),
        ({"reuse": [1]}, r"change.reuse is \[1\]: a list of names"),
        ({"drop": ["a", "a"]}, "change.drop names block 'a' twice"),
        ({"drop": ["a"], "reuse": ["a"]}, "block 'a' is in change.drop and in change.reuse"),
        ({"guidance": 0}, "change.guidance is 0: true or false"),
        ({"dropped": []}, "did you mean 'drop'"),
    ],
)
def test_bad_records(change, words):
    record = {"format": "genflow-schedule", "version": 1, "times": [1, 0.5]}
    record["steps"] = [{"change": change}]
    with pytest.raises(UserError, match=words):
        SolverSchedule.from_json(json.dumps(record))


def test_the_names_are_those_of_the_state_dict(denoiser):
    keys = denoiser.net.model.state_dict()
    assert all(any(k.startswith(f"{n}.") for k in keys) for n in blocks_of(denoiser.net.model))
