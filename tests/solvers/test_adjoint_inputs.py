"""What a repeated call must have again, and what is refused because it could not."""

from nets import Net, gradients, same, wrapped
from oracles import mixture
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.models import Exact, Guided, Preconditioned, VariancePreserving
from genflow.solvers import Sampler, Tableau, adjoint, build, schedule_for, tabulate

PATH = VariancePreserving()
X = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def state():
    return X.clone().requires_grad_()


# ------------------------------------------------------------ what must be the same again


@pytest.mark.parametrize("keep", [0, 2])
def test_dropout_in_training_mode_is_drawn_again(keep):
    denoiser = wrapped("guided", PATH, dropout=0.4).train()
    ours, theirs = (
        gradients(build("ddpm", denoiser, 6, gradient=p)) for p in ("direct", adjoint.Exact(keep))
    )
    assert same(ours, theirs)
    torch.manual_seed(1)
    assert not torch.equal(
        *(build("ddim", denoiser, 6, gradient="exact")(X, shift=X) for _ in range(2))
    )


def test_the_backward_pass_leaves_the_generator_alone():
    denoiser = wrapped("plain", PATH, dropout=0.4).train()
    y = build("ddim", denoiser, 6, gradient="exact")(state(), shift=X)
    before = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_entered_again(inside):
    """Bit for bit where autocast caches no weights, called back inside of it or outside."""

    torch.manual_seed(0)
    denoiser = Preconditioned(Net(torch.float32, width=16), PATH, "v")
    x = X.float().requires_grad_()
    found = []

    for policy in ("direct", "exact"):
        sampler = build("unipc", denoiser, 5, gradient=policy)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = sampler(x)
            if inside:
                g = torch.autograd.grad(y.square().sum(), [x, *denoiser.parameters()])
        if not inside:
            g = torch.autograd.grad(y.square().sum(), [x, *denoiser.parameters()])
        found.append([y.detach(), *g])

    assert same(*found)
    plain = build("unipc", denoiser, 5, gradient="exact")(x)
    assert 1e-4 < (plain - found[0][0]).abs().max() < 0.5


def test_autocast_with_its_cache_loses_no_gradient():
    """Weights that were cast without gradients are not met again with them."""

    denoiser = Preconditioned(Net(torch.float32, width=16), PATH, "v")
    x = X.float().requires_grad_()
    found = []

    for policy in ("direct", "exact"):
        with torch.autocast("cpu", torch.bfloat16):
            y = build("ddim", denoiser, 5, gradient=policy)(x)
            found.append(torch.autograd.grad(y.square().sum(), [x, *denoiser.parameters()]))

    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
        assert theirs.any()


def test_functional_calls_are_repeated_with_the_same_weights():
    denoiser = wrapped("plain", PATH)
    other = {
        f"denoiser.net.{k}": (2 * v.detach()).requires_grad_()
        for k, v in denoiser.net.named_parameters()
    }
    found = []

    for policy in ("direct", "exact"):
        sampler = build("ddim", denoiser, 4, gradient=policy)
        y = torch.func.functional_call(sampler, other, (state(),), {"shift": X})
        found.append([y.detach(), *torch.autograd.grad(y.sum(), [*other.values()])])

    assert same(*found)
    assert not any(a is b for a, b in zip(denoiser.parameters(), other.values(), strict=True))


# ----------------------------------------------------------- what is never left out silently


def test_a_hidden_parameter_is_named():
    hidden = nn.Parameter(torch.ones(2, 5, dtype=torch.float64))

    class Hiding(Net):
        def forward(self, x, time):
            return super().forward(x, time) * hidden.mean()

    denoiser = Preconditioned(Hiding(), PATH, "v")
    y = build("ddim", denoiser, 4, gradient="exact")(state())
    with pytest.raises(UserError, match=r"uses a parameter with shape \(2, 5\) that requires"):
        y.sum().backward()
    with pytest.raises(UserError, match="gradient 'continuous' would leave it out"):
        policy = adjoint.Continuous(chart="phi")
        build("ddim", denoiser, 4, gradient=policy)(state()).sum().backward()
    with torch.no_grad():
        hidden.requires_grad_(False)
    build("ddim", denoiser, 4, gradient="exact")(state()).sum().backward()


def test_parameters_in_unregistered_places_are_found():
    """Networks and tensors in lists, and tensors that came out of a computation."""

    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = [Net()]
            self.raw = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            self.table = {"scale": [self.raw.exp() * 0.7]}

        def forward(self, x, time):
            return self.nets[0](x, time) * self.table["scale"][0]

    net = Loose()
    denoiser = Preconditioned(net, PATH, "v")
    x, found = state(), []

    for policy in ("direct", "exact"):
        y = build("unipc", denoiser, 5, gradient=policy)(x)
        targets = [x, net.raw, *net.nets[0].parameters()]
        found.append(torch.autograd.grad(y.square().sum(), targets, retain_graph=True))

    assert same(*found) and all(g.any() for g in found[1])


@pytest.mark.parametrize("policy", ["exact", adjoint.Exact(keep=2)])
def test_conditions_that_the_network_computed_itself(policy):
    """Its weights are reached by two ways, in the calls and behind the condition, each once."""

    denoiser = wrapped("guided", PATH)
    net, found = denoiser.denoiser.net, []

    for p in ("direct", policy):
        x = state()
        shift = torch.nn.functional.pad(net.leave.weight[:, :3].T + net.leave.bias, (0, 0)).exp()
        y = build("unipc", denoiser, 5, gradient=p)(x, shift=shift)
        found.append(torch.autograd.grad(y.square().sum() + shift.sum(), [x, *net.parameters()]))

    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_a_change_in_place_between_the_passes_is_noticed():
    denoiser = wrapped("plain", PATH)
    for frozen in (False, True):
        denoiser.requires_grad_(not frozen)
        y = build("ddim", denoiser, 4, gradient="exact")(state(), shift=X)
        with torch.no_grad():
            denoiser.net.enter.weight.mul_(1.1)
        with pytest.raises(UserError, match="a parameter with shape .* was changed in place"):
            y.sum().backward()


# ------------------------------------------------------------------------- what is refused


@pytest.mark.filterwarnings("ignore:gradient is 'continuous'")
def test_nothing_to_differentiate():
    truth = Exact(PATH, mixture())
    for policy in ("exact", "continuous", "truncated"):
        with pytest.raises(UserError, match=f"gradient is '{policy}', but nothing that the"):
            build("ddim", truth, 20, grid="uniform", gradient=policy)(X)
    with pytest.raises(UserError, match="nothing that the samples depend on"):
        build("ddim", truth, 4, gradient="truncated")(state())
    with torch.no_grad():
        build("ddim", truth, 4, gradient="exact")(X)


@pytest.mark.parametrize("policy", ["exact", "continuous", adjoint.Truncated(4)])
@pytest.mark.filterwarnings("ignore:gradient is 'continuous'")
def test_second_derivatives(policy):
    y = build("ddim", wrapped("plain", PATH), 4, gradient=policy)(x := state(), shift=X)
    with pytest.raises(UserError, match="cannot be differentiated again"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_batch_normalisation_in_training_mode():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2, dtype=torch.float64)

        def forward(self, x, time):
            return self.norm(super().forward(x, time))

    denoiser = Preconditioned(Normed(), PATH, "v")
    sampler = build("ddim", denoiser, 4, gradient="exact")
    with pytest.raises(UserError, match="batch normalisation in training mode"):
        sampler(state())
    denoiser.eval()
    sampler(state()).sum().backward()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adjoint.Exact(keep=-1), "keep is -1"),
        (lambda: adjoint.Truncated(0), "last is 0: a number of calls, 1 or more"),
        (lambda: adjoint.Truncated((3, 2)), r"last is \(3, 2\)"),
        (lambda: adjoint.Truncated(2, resamples=3), "resamples is 3 with last 2"),
        (lambda: adjoint.policy("exat"), "gradient is 'exat': did you mean 'exact'"),
        (lambda: adjoint.Continuous("eular"), "method is 'eular': did you mean 'euler'"),
        (lambda: adjoint.Continuous(chart="phy"), "chart is 'phy': did you mean 'phi'"),
        (lambda: adjoint.Continuous("dopri5", "rho"), "chart is 'rho'"),
        (lambda: adjoint.Continuous(states="solved"), "did you mean 'resolved'"),
        (lambda: adjoint.Continuous("dopri5", states="stored"), "states is 'stored', but"),
        (lambda: adjoint.Continuous(times=(0.1, 0.9)), "two or more decreasing times"),
        (lambda: adjoint.Continuous("dopri5", times=(0.9, 0.1)), "for a method with a grid"),
        (lambda: adjoint.Continuous("dopri5", rtol=0.0), "rtol is 0.0 and atol"),
    ],
)
def test_bad_policies(make, words):
    with pytest.raises(UserError, match=words):
        make()


def sampler(policy, name="ddim", steps=4, path=PATH, **options):
    return build(name, Exact(path, mixture()), steps, gradient=policy, **options)


def table(**changes):
    known = tabulate(schedule_for("ddim", PATH, 4), PATH)
    columns = {"time": known.time, "weight": known.weight, "noise": known.noise, **changes}
    return Tableau(**columns)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sampler(adjoint.Truncated(5)), "last is 5, and the sampler makes 4 calls"),
        (
            lambda: sampler(adjoint.Truncated(resamples=2), "dpmpp-2m", lower_final=False),
            "the last step looks back",
        ),
        (lambda: sampler("continuous", "ddpm"), "the sampler draws fresh noise"),
        (
            lambda: Sampler(Exact(PATH, mixture()), table(), "continuous"),
            "the table has no stop",
        ),
        (
            lambda: Sampler(
                Exact(PATH, mixture()),
                table(weight=torch.ones(4, 3, requires_grad=True)),
                "continuous",
            ),
            "knows no gradients of times and weights",
        ),
        (
            lambda: sampler(adjoint.Continuous(states="resolved"), final="zero"),
            "no way leads back from clean data",
        ),
        (
            lambda: sampler(adjoint.Continuous(times=(0.9, 0.1))),
            "those of the sampler run",
        ),
    ],
)
def test_policies_that_cannot_serve_a_sampler(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_guidance_that_is_replaced_later_is_not_mixed_up():
    """The weight in use is the one that the sampler was built with."""

    denoiser = wrapped("plain", PATH)
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    guided = Guided(denoiser, weight, {"shift": 0.1})
    found = []
    for policy in ("direct", "exact"):
        y = build("ddim", guided, 4, gradient=policy)(state(), shift=X)
        found.append(torch.autograd.grad(y.sum(), [weight]))
    assert same(*found) and found[0][0] != 0
