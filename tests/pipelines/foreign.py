"""Tiny pipelines of diffusers for the way in: real classes, text encoders and all, no download."""

import string

import diffusers
import pytest
import torch

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TEXT = 16


def randomised(module, scale=0.08):
    """The module with every weight moved: fresh networks are zero at their ends."""

    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return module.eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ddim(**options):
    options = {**BETAS, "clip_sample": False, "timestep_spacing": "trailing", **options}
    return diffusers.DDIMScheduler(**options)


def unet(**options):
    torch.manual_seed(0)
    return randomised(
        diffusers.UNet2DModel(
            **{
                "sample_size": 8,
                "layers_per_block": 1,
                "block_out_channels": (8, 16),
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                "norm_num_groups": 4,
                "attention_head_dim": 4,
                **options,
            }
        )
    )


def vae(**options):
    torch.manual_seed(1)
    return randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=16,
            **options,
        )
    )


def shifted_vae():
    return vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)


def dit(learned=True, classes=1000):
    torch.manual_seed(2)
    return randomised(
        diffusers.DiTTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=8 if learned else 4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_embeds_ada_norm=classes,
        )
    )


def text_unet(width=TEXT, **options):
    torch.manual_seed(3)
    return randomised(
        diffusers.UNet2DConditionModel(
            **{
                "sample_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "layers_per_block": 1,
                "block_out_channels": (8, 16),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "norm_num_groups": 4,
                "attention_head_dim": 4,
                "cross_attention_dim": width,
                **options,
            }
        )
    )


def text_unet_xl():
    return text_unet(
        2 * TEXT,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT,
        use_linear_projection=True,
    )


def clip(projected=False, seed=4):
    """A tokenizer that spells, and an encoder."""

    transformers = pytest.importorskip("transformers")
    letters = string.ascii_lowercase
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + "</w>" for c in letters)]
    tokenizer = transformers.CLIPTokenizer(
        vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=12
    )
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        hidden_size=TEXT,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(words),
        max_position_embeddings=12,
        projection_dim=TEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return tokenizer, randomised(cls(config), 0.2)


def t5(width=TEXT):
    transformers = pytest.importorskip("transformers")
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0)]
    vocab = [*special, *((c, -1.0) for c in "▁" + string.ascii_lowercase)]
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=len(vocab), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    tokenizer = transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=16)
    return tokenizer, randomised(transformers.T5EncoderModel(config), 0.2)


def ddpm(scheduler=None, **options):
    pipeline = diffusers.DDPMPipeline(unet(**options), scheduler or ddim())
    return quiet(pipeline)


def dit_pipeline(learned=True, labels=None):
    classes = 1000 if labels is None else len(labels)
    names = None if labels is None else dict(enumerate(labels))
    return quiet(diffusers.DiTPipeline(dit(learned, classes), vae(), ddim(), id2label=names))


def stable_with(**parts):
    words, encoder = clip()
    made = {
        "vae": vae(),
        "text_encoder": encoder,
        "tokenizer": words,
        "unet": text_unet(),
        "scheduler": ddim(steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return quiet(diffusers.StableDiffusionPipeline(**made | parts))


def stable(scheduler=None, **options):
    return stable_with(unet=text_unet(**options), scheduler=scheduler or ddim(steps_offset=1))


def stable_xl(zeros=True, **scales):
    words, encoder = clip()
    return quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=vae(**scales),
            text_encoder=encoder,
            text_encoder_2=clip(projected=True, seed=8)[1],
            tokenizer=words,
            tokenizer_2=clip()[0],
            unet=text_unet_xl(),
            scheduler=ddim(steps_offset=1),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    )


def stable_3(**shifting):
    words, encoder = clip(projected=True)
    words_3, encoder_3 = t5(2 * TEXT)
    torch.manual_seed(6)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=16,
    )
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=randomised(transformer),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shifting),
            vae=shifted_vae(),
            text_encoder=encoder,
            tokenizer=words,
            text_encoder_2=clip(projected=True, seed=8)[1],
            tokenizer_2=clip()[0],
            text_encoder_3=encoder_3,
            tokenizer_3=words_3,
        )
    )


def flux(guided=True, **shifting):
    (words, encoder), (words_2, encoder_2) = clip(), t5()
    torch.manual_seed(6)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    return quiet(
        diffusers.FluxPipeline(
            transformer=randomised(transformer),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shifting),
            vae=shifted_vae(),
            text_encoder=encoder,
            tokenizer=words,
            text_encoder_2=encoder_2,
            tokenizer_2=words_2,
        )
    )
