"""Tiny networks of every family whose blocks can be left out, awake, and how they are called."""

import diffusers
import torch

from genflow.nn import Net
from genflow.pipelines.families import Prompted

WORDS, WIDTH = 5, 12


def awake(model, scale=0.15):
    """Fresh networks are zero at their ends: every weight is moved."""

    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return model.eval().requires_grad_(False)


def unet(**more):
    torch.manual_seed(0)
    options = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    return Net(awake(diffusers.UNet2DModel(**options | more)))


def resampling():
    """Residual blocks that resample, scale-shift, and an output that is scaled."""

    return unet(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        mid_block_scale_factor=1.5,
    )


def conditional():
    torch.manual_seed(1)
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
    )
    return Prompted(awake(model))


def dit():
    torch.manual_seed(2)
    model = diffusers.DiTTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=10,
    )
    return Net(awake(model))


def sd3():
    torch.manual_seed(4)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        num_layers=3,
        dual_attention_layers=(0,),
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
        in_channels=4,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return Prompted(awake(model))


def flux():
    torch.manual_seed(5)
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return Prompted(awake(model))


def words(B, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(B, WORDS, WIDTH, generator=g),
        "pooled_prompt_embeds": torch.randn(B, WIDTH, generator=g),
    }


# name → the network, the shape of a sample, the names of its conditions
NETS = {
    "unet": (unet, (3, 8, 8), ()),
    "resampling": (resampling, (3, 8, 8), ()),
    "conditional": (conditional, (4, 8, 8), ("prompt_embeds",)),
    "dit": (dit, (4, 8, 8), ()),
    "sd3": (sd3, (4, 8, 8), ("prompt_embeds", "pooled_prompt_embeds")),
    "flux": (flux, (4, 8, 8), ("prompt_embeds", "pooled_prompt_embeds")),
}


class Case:
    """A network with something to call it on."""

    def __init__(self, name):
        make, self.shape, conditions = NETS[name]
        self.name, self.net = name, make()
        self.model = self.net.model
        self.conditions = conditions

    def cond(self, B=2):
        return {k: v for k, v in words(B).items() if k in self.conditions}

    def input(self, seed=0, B=2):
        g = torch.Generator().manual_seed(seed)
        return torch.randn(B, *self.shape, generator=g)

    def __call__(self, seed=0, net=None, B=2):
        net = self.net if net is None else net
        with torch.no_grad():
            return net(self.input(seed, B), torch.tensor(300.0 + 100 * seed), **self.cond(B))
