"""Latents: made once by an autoencoder, trained on, and decoded by the pipeline that keeps it."""

import json

import diffusers
import foreign
import pytest
import torch

from genflow.data import Given, Latents, LatentStore, to_float
from genflow.errors import UserError
from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.pipelines import Pipeline
from genflow.pipelines.codecs import Codec
from genflow.pipelines.folders import load_codec
from genflow.pipelines.latents import encode
from genflow.pipelines.pairs import make_pairs


def deep():
    """A deep-compression autoencoder, tiny."""

    torch.manual_seed(1)
    return foreign.randomised(
        diffusers.AutoencoderDC(
            latent_channels=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.41,
        ),
        0.02,
    )


def pictures(n=10):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 16, 16), generator=g).byte()
    return Given(x, torch.arange(n) % 2)


@pytest.fixture
def store(tmp_path):
    encode(pictures(), Codec(foreign.vae()), tmp_path / "l", shard_size=4, batch_size=3)
    return tmp_path / "l"


def test_latents_are_those_of_the_autoencoder(store):
    data, raw = Latents(store), pictures().train_set[:]
    codec = load_codec(data.vae)
    x = codec.encode(to_float(raw["x"])).detach()
    torch.testing.assert_close(data.train_set[:]["x"], x, rtol=1e-3, atol=1e-3)
    assert torch.equal(data.train_set[:]["label"], raw["label"])
    assert (data.shape, data.classes, data.title) == ((4, 8, 8), 2, "latents of Given")
    assert sorted(p.name for p in store.glob("x-*")) == [f"x-{k:05d}.npy" for k in range(3)]


def test_a_store_goes_on_and_knows_its_autoencoder(store, tmp_path):
    def again(codec=None, data=None, **options):
        settings = {"shard_size": 4, "batch_size": 3, **options}
        return encode(data or pictures(), codec or Codec(foreign.vae()), store, **settings)

    stamps = {p.name: p.stat().st_mtime_ns for p in store.glob("x-*")}
    (store / "x-00001.npy").unlink()
    with pytest.raises(UserError, match="latents .* incomplete: 1 of 3 shards are missing .1."):
        LatentStore(store)
    again(shard=(0, 2))
    assert not (store / "x-00001.npy").exists()
    again(shard=(1, 2))
    now = {p.name: p.stat().st_mtime_ns for p in store.glob("x-*")}
    assert {k for k in stamps if now[k] != stamps[k]} == {"x-00001.npy"}

    other = foreign.randomised(foreign.vae(), 0.01)
    for words, options in (
        ("latents of another job .codec is", {"codec": Codec(other)}),
        ("latents of another job .n is 10, not 6", {"data": pictures(6)}),
        ("dtype is float16, not float32", {"dtype": "float32"}),
        ("shard_size is 0", {"shard_size": 0}),
        ("batch_size is 0", {"batch_size": 0}),
    ):
        with pytest.raises(UserError, match=words):
            again(**options)


def test_latents_that_cannot_be(tmp_path):
    from genflow.data import Digits

    codec = Codec(foreign.vae())
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\): .* 3 channels and sides divisible"):
        encode(Digits(), codec, tmp_path / "x")
    with pytest.raises(UserError, match="flip is True, but a mirrored latent"):
        Latents(tmp_path, flip=True)
    with pytest.raises(UserError, match="no store of latents"):
        Latents(tmp_path).setup()
    with pytest.raises(UserError, match="holds no autoencoder"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(UserError, match="is a AutoencoderTiny.*AutoencoderKL"):
        load_codec(tmp_path)
    with pytest.raises(UserError, match="is a Linear"):
        Codec(torch.nn.Linear(1, 1))
    hot = foreign.vae()
    hot.register_to_config(scaling_factor=1e9)
    with pytest.raises(UserError, match="not finite as float16"):
        encode(pictures(), Codec(hot), tmp_path / "y")


@pytest.mark.parametrize("vae", [foreign.vae, foreign.shifted_vae, deep])
def test_a_pipeline_keeps_its_autoencoder(vae, tmp_path):
    net = foreign.randomised(UNet(8, 4, widths=(8, 8), layers=1, attention=(), groups=4), 0.05)
    flow, codec = Preconditioned(net, Rectified()), Codec(vae())
    pipe = Pipeline(flow, (4, 8, 8), sampler="euler", steps=2, codec=codec.eval())
    pipe.save(tmp_path / "p")
    again = Pipeline.from_pretrained(tmp_path / "p")
    assert pipe.event == again.event == (3, 16, 16)
    assert torch.equal(pipe(3, seed=0).x, again(3, seed=0).x)
    assert [i.size for i in again(2, seed=0).images] == [(16, 16)] * 2

    x = to_float(pictures(2).x)
    z = codec.encode(x)
    scale = codec.vae.config["scaling_factor"]
    assert z.shape == (2, *codec.latent((3, 16, 16))) == (2, 4, 8, 8)
    shift = codec.vae.config.get("shift_factor") or 0.0
    raw = codec.vae.encode(x)
    raw = raw.latent if hasattr(raw, "latent") else raw.latent_dist.mean
    torch.testing.assert_close(z, (raw - shift) * scale)
    torch.testing.assert_close(codec.decode(z), codec.vae.decode(raw).sample, rtol=1e-4, atol=1e-4)


def test_translations_and_pairs_go_through_latents(tmp_path):
    net = UNet(8, 4, widths=(8, 8), layers=1, attention=(), groups=4)
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    codec = Codec(foreign.vae()).eval()
    parts = {"sampler": "euler", "steps": 2, "codec": codec}
    still = Pipeline(Preconditioned(net, Rectified()), (4, 8, 8), source="Given", **parts)
    x = to_float(pictures(3).x)
    torch.testing.assert_close(still.translate(x).x, codec.decode(codec.encode(x)).detach())

    noise = Pipeline(Preconditioned(net, Rectified()), (4, 8, 8), **parts)
    manifest = make_pairs(noise, tmp_path / "pairs", 3, sampler="euler", steps=1)
    assert (manifest.shape, manifest.dtype) == ((4, 8, 8), "float16")
    with pytest.raises(UserError, match="samples are latents: take float16"):
        make_pairs(noise, tmp_path / "q", 3, dtype="uint8")
