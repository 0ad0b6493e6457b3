"""Stock folders are loaded; those and the calls that cannot be used get one sentence."""

import json
import os
import shutil

import diffusers
import foreign
import pytest
import torch

from genflow.errors import UserError
from genflow.pipelines import Pipeline
from genflow.pipelines.adapters import adapt, denoiser_of, discrete_path
from genflow.pipelines.exports import export_diffusers

torch.set_num_threads(1)

SIZE = (16, 16)
WORDS = ["a cat", "dog"]

MADE = {
    "DDPMPipeline": foreign.ddpm,
    "DDIMPipeline": lambda: diffusers.DDIMPipeline(foreign.unet(), foreign.ddim()),
    "DiTPipeline": foreign.dit_pipeline,
    "StableDiffusionPipeline": foreign.stable,
    "StableDiffusionXLPipeline": foreign.stable_xl,
    "StableDiffusion3Pipeline": lambda: foreign.stable_3(shift=3.0),
    "FluxPipeline": lambda: foreign.flux(use_dynamic_shifting=True),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Each stock pipeline saved once."""

    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("stock") / name
            MADE[name]().save_pretrained(made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("name", MADE)
def test_stock_folders_are_pipelines(name, folders):
    """A folder that diffusers saved draws what the pipeline in memory draws."""

    size = None if name in ("DDPMPipeline", "DDIMPipeline") else SIZE
    memory = adapt(MADE[name](), size=size)
    pipe = Pipeline.from_pretrained(folders(name), size=size)
    call = {"prompt": "a cat"} if pipe.condition is not None else {}
    options = {"n": 2, "seed": 0, "steps": 3, **call}
    if call or pipe.classes is not None:
        options["guidance"] = 2.0

    ours, theirs = pipe(**options), memory(**options)
    assert torch.equal(ours.x, theirs.x) and ours.x.std() > 0.1
    assert (pipe.spacing, pipe.shape, pipe.sampler) == (
        memory.spacing,
        memory.shape,
        memory.sampler,
    )
    assert pipe.card == {"adapted_from": name}


def test_an_adapted_unet_is_saved_by_genflow(folders, tmp_path):
    pipe = Pipeline.from_pretrained(folders("DDPMPipeline"))
    pipe.save(tmp_path / "p")
    again = Pipeline.from_pretrained(tmp_path / "p")
    assert torch.equal(pipe(2, seed=0, steps=3).x, again(2, seed=0, steps=3).x)


def test_what_genflow_exports_comes_back(tmp_path):
    pipe = adapt(foreign.ddpm(diffusers.FlowMatchEulerDiscreteScheduler()))
    export_diffusers(pipe, tmp_path / "p")
    again = Pipeline.from_pretrained(tmp_path / "p")
    assert torch.equal(pipe(2, seed=0, steps=3).x, again(2, seed=0, steps=3).x)


def test_parts_that_genflow_does_not_save(folders, tmp_path):
    pipe = Pipeline.from_pretrained(folders("StableDiffusionPipeline"))
    refused("call save_pretrained of the stock pipeline", pipe.save, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_an_adapted_dit_is_saved_with_its_autoencoder(folders, tmp_path):
    pipe = Pipeline.from_pretrained(folders("DiTPipeline"))
    pipe.save(tmp_path / "p")
    again = Pipeline.from_pretrained(tmp_path / "p")
    options = {"seed": 0, "steps": 2, "label": [1, 7]}
    assert again.event == pipe.event == (3, 16, 16)
    assert torch.equal(pipe(2, **options).x, again(2, **options).x)


def test_hub_ids_are_snapshots(folders, tmp_path, monkeypatch):
    """A repository as the hub's own cache lays it out; the network is not there."""

    from huggingface_hub import constants

    repository = tmp_path / "models--a--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(folders("StableDiffusionPipeline"), snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    pipe = Pipeline.from_pretrained("a/tiny", size=SIZE)
    assert pipe("a cat", steps=2).x.shape == (1, 3, 16, 16)


def changed(**entries):
    def damage(folder):
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return damage


def pickled(part, name):
    """The weights as a pickle, which diffusers would fall back on."""

    def damage(folder):
        from safetensors.torch import load_file

        file = folder / part / f"{name}.safetensors"
        bins = {"model": "pytorch_model.bin"}
        torch.save(load_file(file), folder / part / bins.get(name, f"{name}.bin"))
        file.unlink()

    return damage


def lacking(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file, metadata={"format": "pt"})


UNET = "diffusion_pytorch_model"
DAMAGES = {
    "unknown class": (changed(_class_name="KandinskyPipeline"), "Kandinsky.*FluxPipeline are"),
    "code of its own": (changed(_class_name=["pipeline", "Mine"]), "FluxPipeline are known"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "no folder scheduler"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "no folder tokenizer"),
    "no network": (lambda f: shutil.rmtree(f / "unet"), "no folder unet"),
    "null network": (changed(unet=[None, None]), "names no unet"),
    "null scheduler": (changed(scheduler=[None, None]), "names no scheduler"),
    "odd entry": (changed(unet="unet"), "names no unet"),
    "foreign network": (changed(unet=["os", "system"]), "unet of .* is a system"),
    "foreign scheduler": (changed(scheduler=["os", "system"]), "cannot be loaded"),
    "foreign codec": (changed(vae=["diffusers", "AutoencoderTiny"]), "AutoencoderKL are known"),
    "pickled network": (pickled("unet", UNET), "safetensors found"),
    "pickled encoder": (pickled("text_encoder", "model"), "safetensors found"),
    "cut weights": (
        lambda f: os.truncate(f / "unet" / f"{UNET}.safetensors", 2000),
        "cannot be loaded",
    ),
    "a weight is lacking": (lacking, "do not fit"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_stock_folders(how, folders, tmp_path):
    damage, words = DAMAGES[how]
    shutil.copytree(folders("StableDiffusionPipeline"), tmp_path / "p")
    damage(tmp_path / "p")
    refused(words, Pipeline.from_pretrained, tmp_path / "p")


def test_size_is_for_stock_pipelines(pipe, tmp_path):
    pipe.save(tmp_path / "p")
    refused("size is", Pipeline.from_pretrained, tmp_path / "p", size=SIZE)


def refused(words, call, *args, **options):
    with pytest.raises(UserError, match=words) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


def test_wrong_conditions_are_named():
    x, t = torch.randn(1, 3, 8, 8), torch.tensor(0.5)
    config = diffusers.DDPMScheduler().config
    refused("takes no conditions", denoiser_of(foreign.unet(), config), x, t, prompt_embeds=x)

    labelled = denoiser_of(foreign.dit(classes=3), config)
    refused("did you mean 'label'", labelled, x, t, lable=torch.tensor([1]))

    guided = denoiser_of(foreign.text_unet_xl(), config)
    cond = {"prompt_embeds": x, "pooled_prompt_embeds": x}
    refused("'time_ids' is missing", guided, x, t, **cond)
    refused("did you mean 'time_ids'", guided, x, t, **cond, time_id=x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "prompt is missing"),
        ({"prompt": WORDS, "n": 3}, "prompt holds 2 values for 3 samples"),
        ({"prompt": "a cat", "label": 1}, "no classes"),
        ({"prompt": "a cat", "negative": "bad"}, "guidance is 1"),
        ({"prompt": WORDS, "negative": ["x"] * 3, "guidance": 2}, "negative holds 3 values"),
        ({"prompt": "a cat", "promt": "x"}, "'promt'"),
        ({"prompt": "a cat", "conditions": {"embeds": 1.0}}, "condition is 'embeds'"),
        ({"prompt": WORDS, "conditions": {"x": torch.ones(5)}}, "x holds 5 values"),
    ],
)
def test_bad_calls_get_one_sentence(options, words):
    refused(words, adapt(foreign.stable(), size=SIZE), **options)


def test_a_prompt_is_given_once_and_to_those_who_read(pipe):
    refused("given twice", adapt(foreign.stable()), "a cat", prompt="a dog")
    refused("given twice", pipe, 3, n=4)
    refused("takes no prompts", pipe, "a cat")
    refused("takes no prompts", pipe, 2, guidance=2, negative="a cat")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "says nothing about the network"),
        (
            dict(diffusers.DDPMScheduler().config) | {"prediction_type": "v"},
            "Allowed: epsilon, sample, v_prediction",
        ),
        (dict(diffusers.DDPMScheduler().config) | {"beta_schedule": "odd"}, "'odd'"),
        (dict(diffusers.EDMEulerScheduler(prediction_type="v_prediction").config), "'epsilon'"),
        (dict(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config), "invert"),
        (dict(diffusers.FlowMatchEulerDiscreteScheduler(100).config), "is 100"),
    ],
)
def test_configs_that_describe_no_known_network(config, words):
    refused(words, denoiser_of, foreign.unet(), config)


def test_pipelines_that_do_not_fit():
    refused("is a Linear", denoiser_of, torch.nn.Linear(1, 1), diffusers.DDPMScheduler().config)
    refused("is a dict.*FluxPipeline", adapt, {})
    refused("no scheduler", adapt, foreign.stable_with(scheduler=None))
    refused("multiples of 2", adapt, foreign.stable(), size=(15, 16))
    refused("multiples of 4", adapt, foreign.flux(), size=(18, 16))
    refused("does not say its size", adapt, foreign.ddpm(sample_size=None))
    refused("class_embed_type", adapt, foreign.stable(class_embed_type="timestep"))
    refused("no levels of β", discrete_path, {"prediction_type": "flow_prediction"})


def test_the_names_of_classes():
    pipe = adapt(foreign.dit_pipeline(labels=["tench, Tinca tinca", "goldfish"]))
    assert pipe.class_names == ("Tinca tinca", "goldfish")
    assert torch.equal(pipe(1, label="goldfish", seed=0).x, pipe(1, label=1, seed=0).x)


def generated(out, *arguments):
    from genflow.cli import main

    call = ("--steps", "2", "--guidance", "3", "--size", "[16,16]", "--device", "cpu")
    return main(["generate", *map(str, arguments), "--output", str(out), *call])


def test_the_command_line_takes_prompts(folders, tmp_path, capsys):
    """A file of prompts is gone round in, each image has its own, and a resumed job keeps them."""

    pytest.importorskip("transformers")
    (tmp_path / "words.txt").write_text("a cat\n\ndog\n")
    texts = (folders("StableDiffusionPipeline"), "--prompt", f"@{tmp_path / 'words.txt'}")
    assert generated(tmp_path / "a", *texts, "--negative", "bad", "--n", 3) == 0
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert [m["prompt"] for m in meta["images"]] == ["a cat", "dog", "a cat"]
    assert meta["sampler"]["negative"] == "bad"

    images = [tmp_path / "a" / "images" / f"{i:06d}.png" for i in range(3)]
    before = [image.read_bytes() for image in images]
    images[1].unlink()
    assert generated(tmp_path / "a", *texts, "--negative", "bad", "--n", 3, "--resume") == 0
    assert [image.read_bytes() for image in images] == before

    assert generated(tmp_path / "b", texts[0], "--prompt", "dog", "--negative", "bad") == 0
    one = (tmp_path / "b" / "images" / "000001.png").read_bytes()
    assert one == before[1] and before[0] != before[1]


def test_files_of_prompts_that_cannot_be_used(folders, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    folder = folders("StableDiffusionPipeline")
    for name, words in (("none.txt", "cannot be read"), ("empty.txt", "is an empty file")):
        assert generated(tmp_path / "c", folder, "--prompt", f"@{tmp_path / name}") == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
