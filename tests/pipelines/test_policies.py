"""Gradient policies through pipelines: tensors in, tensors with a graph out, codecs included."""

import foreign
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.pipelines.adapters import adapt
from genflow.solvers import adjoint

LABEL = torch.tensor([0, 1])


def start(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe.build(steps=2).init((2, *pipe.shape), generator=generator)


def test_everything_that_a_call_takes(pipe):
    """Noise, guidance and weights: the policies agree bit for bit, and none is the default."""

    nn.init.normal_(pipe.denoiser.net.model.conv_out.weight, std=0.1)
    weight = torch.tensor([1.5, 3.0], requires_grad=True)
    x = start(pipe).requires_grad_()
    call = {"label": LABEL, "guidance": weight, "clip": True, "sampler": "unipc", "steps": 4}
    targets = [x, weight, *pipe.denoiser.parameters()]
    found = []

    for gradient in ("direct", "exact", adjoint.Exact(keep=2)):
        y = pipe.sample(x, gradient=gradient, **call)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), targets)])

    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert found[0][2].all() and not pipe.sample(x, **call).requires_grad
    assert not pipe(2, seed=0, steps=2).x.requires_grad


def test_truncated_and_continuous(pipe):
    x = start(pipe).requires_grad_()
    y = pipe.sample(x, gradient=adjoint.Truncated(2), label=LABEL, steps=4)
    y.sum().backward()
    assert x.grad is None and all(p.grad is not None for p in pipe.denoiser.parameters())
    policy = adjoint.Continuous("heun", "phi")
    exact, near = (
        torch.autograd.grad(
            pipe.sample(x, gradient=p, label=LABEL, sampler="ddim", steps=40).square().sum(), x
        )[0]
        for p in ("exact", policy)
    )
    assert (near - exact).norm() < 0.1 * exact.norm()
    with pytest.raises(UserError, match="gradient is 'exakt': did you mean 'exact'"):
        pipe.sample(x, gradient="exakt", label=LABEL)


def test_latents_are_decoded_again_one_by_one():
    pipe = adapt(foreign.stable(), size=(16, 16))
    for part in (pipe.denoiser, pipe.codec):
        part.requires_grad_(False)
    sizes, decode = [], pipe.codec.vae.decoder
    decode.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    cond = {k: v.requires_grad_() for k, v in pipe.conditions(2, prompt=["cat", "dog"]).items()}
    z, found = torch.randn(2, *pipe.shape, generator=torch.Generator().manual_seed(0)), []

    for gradient, calls in (("direct", [2]), ("exact", [1] * 4)):
        sizes.clear()
        y = pipe.sample(z, conditions=cond, gradient=gradient, guidance=2, steps=3)
        found.append(torch.autograd.grad(y.square().mean(), cond["prompt_embeds"])[0])
        assert sizes == calls

    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-7)
