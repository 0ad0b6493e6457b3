"""Tiny stock pipelines of diffusers, of the real classes, with random weights."""

from contextlib import contextmanager
import json

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
import torch
from torch import nn

from genflow.models import Discrete
from genflow.solvers import Corrector, SolverSchedule, Step, schedule_for

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LATENT = {"clip_sample": False, "steps_offset": 1}

PATH = Discrete(tuple(DDIMScheduler().alphas_cumprod.tolist()))
MIXED = SolverSchedule(
    (0.999, 0.85, 0.71, 0.52, 0.3, 0.1, 0.0),
    (
        Step(predict="noise", correct=Corrector(relax=0.1)),
        Step(order=2, relax=0.2, correct=Corrector(order=2, points=(2,))),
        Step(order=3, predict="noise", points=((1,), (1, 2)), relax=-0.1),
        Step(order=2, points=(0,), start=1, relax=0.05, correct=Corrector()),
        Step(order=2, predict="noise", points=(2,)),
        Step(),
    ),
)
CORRECTED_END = SolverSchedule(
    (1.0, 0.6, 0.2, 0.02), (Step(), Step(order=2), Step(correct=Corrector()))
)
FROM_NOISE = SolverSchedule((0.98, 0.6, 0.2, 0.0), (Step(source="noise"), Step(order=2), Step()))


def named(name, steps=6, path=PATH, **options):
    return schedule_for(name, path, steps, **options)


def stirred(module, scale=0.1):
    """Fresh networks are zero at their output, and then every sampler agrees with every other."""

    generator = torch.Generator().manual_seed(5)
    for p in module.parameters():
        with torch.no_grad():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return module.eval()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet(**options):
    torch.manual_seed(0)
    common = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 4,
    }
    return stirred(UNet2DModel(**common | options))


def ddpm(scheduler=None):
    return quiet(DDPMPipeline(unet(), scheduler or DDIMScheduler(clip_sample=False)))


def vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8
    ).eval()


def dit():
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return quiet(DiTPipeline(stirred(net), vae(), DDIMScheduler(clip_sample=False)))


def _tokenizer(folder):
    from transformers import CLIPTokenizer

    letters = [c + end for c in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


def _text_config():
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        vocab_size=54,
        projection_dim=16,
        bos_token_id=52,
        eos_token_id=53,
    )


def _conditional(**options):
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    )
    return stirred(net, 0.02)


def stable_diffusion(folder):
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    return quiet(
        StableDiffusionPipeline(
            vae=vae(),
            text_encoder=stirred(CLIPTextModel(_text_config())),
            tokenizer=_tokenizer(folder),
            unet=_conditional(cross_attention_dim=16),
            scheduler=DDIMScheduler(**SD, **LATENT),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def stable_diffusion_xl(folder):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    net = _conditional(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=stirred(CLIPTextModel(_text_config())),
            text_encoder_2=stirred(CLIPTextModelWithProjection(_text_config())),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=net,
            scheduler=DDIMScheduler(**SD, **LATENT),
            add_watermarker=False,
        )
    )


@contextmanager
def watching(scheduler):
    """The states that a scheduler returns, before a pipeline decodes and clamps them."""

    states = []
    step = scheduler.step

    def seen(*args, **kwargs):
        out = step(*args, **kwargs)
        states.append(out[0])
        return out

    scheduler.step = seen
    try:
        yield states
    finally:
        del scheduler.step


class Called(nn.Module):
    """A function (x, time) → output as a network."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x, time):
        with torch.no_grad():
            return self.call(x, time)


def close(ours, theirs, accuracy=2e-5):
    """Equal to float32 accuracy, on the scale of the states, and not for being constant."""

    scale = theirs.abs().max()
    assert theirs.std() > 1e-3 * scale and torch.isfinite(theirs).all()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(accuracy * scale))
