"""Pipelines: samples depend on their seed alone, folders are whole, damage is named."""

import json
import os

from diffusers import UNet2DModel
import pytest
import torch
from untrained import tiny

from genflow.errors import UserError
from genflow.models import Discrete, Karras, Preconditioned, StudentT
from genflow.nn import DiT, Net
from genflow.pipelines import Pipeline
from genflow.solvers import schedule_for


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(pipe):
    together = pipe(seeds=[5, 6, 7], label=[0, 1, 2], sampler="ddpm", steps=5)
    alone = pipe(seeds=[6], label=1, sampler="ddpm", steps=5)
    split = pipe(seeds=[5, 6, 7], label=[0, 1, 2], sampler="ddpm", steps=5, batch_size=2)

    assert torch.allclose(together.x[1], alone.x[0], atol=1e-5)
    assert torch.allclose(together.x, split.x, atol=1e-5)
    assert not torch.allclose(together.x[0], together.x[1], atol=1e-2)


def test_saving_and_loading_changes_nothing(pipe, tmp_path):
    pipe.card = {"data": "ants"}
    pipe.save(tmp_path / "p")
    again = Pipeline.from_pretrained(tmp_path / "p")

    assert torch.equal(pipe(4, seed=0).x, again(4, seed=0).x)
    assert (again.shape, again.class_names, again.card) == (
        pipe.shape,
        pipe.class_names,
        pipe.card,
    )
    assert again.schedule == schedule_for("dpmpp-2m", pipe.denoiser.path, 4)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_the_network_of_a_folder_is_a_plain_diffusers_model(pipe, tmp_path):
    pipe.save(tmp_path / "p")
    net = UNet2DModel.from_pretrained(tmp_path / "p" / "net")
    x = torch.randn(2, 1, 8, 8)
    label = torch.tensor([0, 2])

    ours = pipe.denoiser.net(x, torch.tensor(300.0), label)
    assert torch.equal(ours, net(x, torch.tensor(300.0), class_labels=label).sample)


@pytest.mark.parametrize(
    "path",
    [Karras(0.01, 50.0, 5.0, noise=StudentT(64.0)), Discrete(tuple((0.9, 0.5, 0.1)))],
    ids=lambda p: type(p).__name__,
)
def test_every_part_of_the_record_survives(path, tmp_path):
    torch.manual_seed(0)
    net = DiT(8, 1, heads=2, head_width=8, depth=1, classes=3)
    denoiser = Preconditioned(net, path, "karras", sigma_data=0.3)
    Pipeline(denoiser, (1, 8, 8), sampler="karras-heun", steps=3).save(tmp_path / "p")
    again = Pipeline.from_pretrained(tmp_path / "p")

    assert again.denoiser.path == path
    assert again.denoiser.prediction == "karras" and again.denoiser.sigma_data == 0.3
    assert again.schedule is None, "a method that is no schedule is kept by name"
    assert again.build().nfe == 2 * 3 - 1


def test_call_options_reach_the_sampler(pipe):
    assert pipe(2, seed=0, sampler="heun", steps=3).nfe == 6
    assert pipe(2, seed=0, steps=7).nfe == 7
    assert pipe(2, seed=0, schedule=schedule_for("unipc", pipe.denoiser.path, 5)).nfe == 5

    free = pipe(3, seed=0, guidance=1.0).x
    guided = pipe(3, seed=0, guidance=2.0).x
    outside = pipe(3, seed=0, guidance=2.0, interval=(0.99, 0.999)).x
    assert not torch.allclose(free, guided, atol=1e-3)
    assert torch.allclose(free, outside, atol=1e-6)
    assert pipe(4, seed=0, clip=True).x.abs().max() <= 1


def test_gradients_flow_when_they_are_asked_for(pipe):
    x = pipe.build(steps=2).init((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    label = torch.tensor([0, 1])

    assert not pipe.sample(x, steps=2, label=label).requires_grad
    y = pipe.sample(x, gradient="direct", steps=2, label=label)
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    assert slope.abs().sum() > 0


def test_vectors_are_samples_too(vectors):
    assert vectors(5, seed=1).x.shape == (5, 2)
    assert vectors(5, seed=1).label is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": 7}, "label is 7"),
        ({"label": "dog"}, "ant, bee, cat"),
        ({"label": [0, 1]}, "2 classes for 3 samples"),
        ({"sampler": "dpmp-2m"}, "did you mean 'dpmpp-2m'"),
        ({"sampler": "unipc", "oder": 3}, "did you mean 'order'"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"gradient": "exat"}, "gradient is 'exat'"),
        ({"seeds": [1, 2]}, "n is 3 and there are 2 seeds"),
    ],
)
def test_bad_calls_get_one_sentence(pipe, options, words):
    with pytest.raises(UserError, match=words) as caught:
        pipe(3, **options)
    assert "\n" not in str(caught.value)


def test_guidance_and_labels_need_classes(vectors):
    with pytest.raises(UserError, match="no classes"):
        vectors(1, guidance=2.0)
    with pytest.raises(UserError, match="no classes"):
        vectors(1, label=0)


def test_a_folder_is_never_overwritten_by_accident(pipe, tmp_path):
    pipe.save(tmp_path / "p")
    before = (tmp_path / "p" / "model_index.json").read_text()

    with pytest.raises(UserError, match="exists"):
        tiny(steps=9).save(tmp_path / "p")
    assert (tmp_path / "p" / "model_index.json").read_text() == before

    tiny(steps=9).save(tmp_path / "p", overwrite=True)
    assert Pipeline.from_pretrained(tmp_path / "p").steps == 9

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no model_index.json"):
        pipe.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_full_disk_leaves_nothing_half_written(pipe, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    pipe.save(tmp_path / "p")
    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(UserError, match="No space left"):
        pipe.save(tmp_path / "q")
    with pytest.raises(UserError, match="No space left"):
        pipe.save(tmp_path / "p", overwrite=True)
    monkeypatch.undo()

    assert sorted(f.name for f in tmp_path.iterdir()) == ["p"]
    assert Pipeline.from_pretrained(tmp_path / "p").steps == 4


def damage(folder, how):
    index = folder / "model_index.json"
    weights = folder / "net" / "diffusion_pytorch_model.safetensors"
    record = json.loads(index.read_text())
    match how:
        case "no index":
            index.unlink()
        case "broken index":
            index.write_text(index.read_text()[:40])
        case "foreign index":
            index.write_text(json.dumps({"_class_name": "DDPMPipeline"}))
        case "newer format":
            index.write_text(json.dumps(record | {"format": 99}))
        case "unknown net":
            index.write_text(json.dumps(record | {"net": ["os", "system"]}))
        case "lacks path":
            del record["path"]
            index.write_text(json.dumps(record))
        case "cut weights":
            os.truncate(weights, 1000)
        case "no weights":
            weights.unlink()
        case "other weights":
            net = Net(
                UNet2DModel(
                    8,
                    1,
                    1,
                    block_out_channels=(4,),
                    down_block_types=("DownBlock2D",),
                    up_block_types=("UpBlock2D",),
                    norm_num_groups=2,
                )
            )
            net.model.save_pretrained(folder / "other")
            os.replace(folder / "other" / weights.name, weights)
        case "broken schedule":
            (folder / "schedule.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no index", "model_index.json is missing"),
        ("broken index", "cannot be read"),
        ("foreign index", "DDPMPipeline"),
        ("newer format", "format 99"),
        ("unknown net", "net is 'system'"),
        ("lacks path", "lacks 'path'"),
        ("cut weights", "cannot be loaded"),
        ("no weights", "cannot be loaded"),
        ("other weights", "cannot be loaded|do not fit"),
        ("broken schedule", "no schedule"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(pipe, tmp_path, how, words):
    pipe.save(tmp_path / "p")
    damage(tmp_path / "p", how)

    with pytest.raises(UserError, match=words) as caught:
        Pipeline.from_pretrained(tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_folder():
    with pytest.raises(UserError, match="is no folder"):
        Pipeline.from_pretrained("nowhere")
    with pytest.raises(UserError, match="the hub did not give it"):
        Pipeline.from_pretrained("nobody/nothing-at-all")


def test_an_embedding_is_a_condition_like_any_other(pipe, tmp_path):
    """For the class, with guidance away from no class, from a file, and in a generating job."""

    from genflow.pipelines.conditions import load_conditions, save_conditions

    rows = pipe.denoiser.net.embed(torch.tensor([2, 0]))
    for guidance in (1.0, 3.0):
        ours = pipe(seeds=[4, 5], conditions={"embedding": rows}, guidance=guidance)
        theirs = pipe(seeds=[4, 5], label=[2, 0], guidance=guidance)
        assert torch.equal(ours.x, theirs.x) and ours.label is None
    save_conditions(tmp_path / "e.safetensors", {"embedding": rows[:1]})
    kept = load_conditions(tmp_path / "e.safetensors")
    assert torch.equal(pipe(seeds=[4, 5], conditions=kept).x, pipe(seeds=[4, 5], label=2).x)
    with pytest.raises(UserError, match="holds 2 values for 3 samples"):
        pipe(3, conditions={"embedding": rows})
    (tmp_path / "bad").write_bytes(b"x")
    with pytest.raises(UserError, match="conditions '.*bad' cannot be read"):
        load_conditions(tmp_path / "bad")


def test_the_weight_of_guidance_may_be_a_tensor(pipe):
    """One for all or one each, and 1 is a weight like any other where a gradient is wanted."""

    weights = torch.tensor([1.0, 3.0])
    each = pipe.sample(x := torch.randn(2, 1, 8, 8), label=torch.tensor([0, 1]), guidance=weights)
    for i, w in enumerate((1.0, 3.0)):
        one = pipe.sample(x[i : i + 1], label=torch.tensor([i]), guidance=w)
        torch.testing.assert_close(each[i : i + 1], one, rtol=1e-4, atol=1e-5)
    w = torch.tensor(1.0, requires_grad=True)
    pipe.sample(x, label=torch.tensor([0, 1]), guidance=w, gradient="exact").sum().backward()
    assert w.grad.abs() > 0
