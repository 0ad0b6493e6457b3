"""The models of the zoo: of what data, by which command, measured how."""

__all__ = ["BRIDGE_PAIRS", "RECIPES", "Budget", "Data", "Recipe", "Row"]

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genflow.data.named import named

BRIDGE_PAIRS = ((3, 8), (1, 7), (4, 9), (0, 6))
"""The digits that the bridge leads from, and to."""


@dataclass(frozen=True)
class Data:
    """A data set, as cards name it.

    Attributes:
        text: What `genflow.data.named` knows it by; ROOT stands for the root of Fashion-MNIST.
        name: What it is called.
        images: The number of training images.
        shape: The shape (C, H, W) of one.
        licence: Its licence.
        source: Where it comes from.
        hub: Its id on the Hugging Face hub, or None.
        samples: How many samples are compared with it.
        most: How many of the images serve as the reference, or None for all.
    """

    text: str
    name: str
    images: int
    shape: tuple[int, int, int]
    licence: str
    source: str
    hub: str | None
    samples: int
    most: int | None

    def reference(self, root: Path | None) -> torch.Tensor:
        """The reference images in uint8."""

        return named(self.text.replace("ROOT", str(root))).reference(self.most)


DIGITS = Data(
    "digits",
    "the digits of scikit-learn (Optical Recognition of Handwritten Digits)",
    1797,
    (1, 8, 8),
    "CC BY 4.0",
    "https://archive.ics.uci.edu/dataset/80",
    None,
    1797,
    None,
)
FASHION = Data(
    "FashionMNIST:ROOT",
    "Fashion-MNIST",
    60_000,
    (1, 28, 28),
    "MIT",
    "https://github.com/zalandoresearch/fashion-mnist",
    "zalando-datasets/fashion_mnist",
    1000,
    10_000,
)


@dataclass(frozen=True)
class Row:
    """A sampler in the table of distances.

    Attributes:
        sampler: Its name.
        steps: The numbers of its steps.
        options: Its options.
    """

    sampler: str
    steps: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Budget:
    """What the search for a schedule may cost.

    Attributes:
        counts: The numbers of calls for which schedules are searched.
        rungs: Successive halving of what is known by the distance to the data: how many go on, on
            how many samples each.
        parents: How many of the best are bred from.
        children: The children that the evolution scores.
        samples: The samples that it scores each with.
        finalists: How many of ours, and of the presets, are compared in the end.
        final: The samples of that comparison.
        batch_size: The samples that the network is called with at a time.
        steps: The gradients by which the table of what was found is tuned.
        cloud: The samples of each.
    """

    counts: tuple[int, ...] = (3, 5, 8, 10)
    rungs: tuple[tuple[int, int], ...] = ((10_000, 48), (20, 192), (8, 512))
    parents: int = 8
    children: int = 24
    samples: int = 256
    finalists: int = 3
    final: int = 768
    batch_size: int = 1024
    steps: int = 24
    cloud: int = 512


@dataclass(frozen=True)
class Recipe:
    """How a model is made and measured.

    Attributes:
        name: The name of the model.
        about: What it is, in a sentence.
        kind: ``flow``, ``diffusion``, ``student`` or ``bridge``.
        data: The data.
        command: The command that trains it: OUTPUT is the folder, ROOT that of Fashion-MNIST, and
            ``zoo:NAME`` the model it starts from.
        quick: What is appended or replaced for a trial.
        rows: The table of distances.
        search: The budget of a search; None leaves it out.
        tags: Further tags of the card.
    """

    name: str
    about: str
    kind: str
    data: Data
    command: tuple[str, ...]
    quick: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    search: Budget | None = None
    tags: tuple[str, ...] = ()

    @property
    def teacher(self) -> str | None:
        """The model that this one starts from."""

        return next((w[4:] for w in self.command if w.startswith("zoo:")), None)

    @property
    def seed(self) -> int:
        """The seed of training, which no recipe changes."""

        return 0

    def smaller(self) -> "Recipe":
        """The same with tiny numbers, to see that it runs."""

        data = replace(self.data, samples=24, most=self.data.most and 64)
        rows = tuple(replace(r, steps=r.steps[:2]) for r in self.rows)
        budget = self.search and replace(
            self.search,
            counts=(3,),
            rungs=((10_000, 4), (4, 8)),
            parents=2,
            children=2,
            samples=8,
            finalists=2,
            final=16,
            steps=1,
            cloud=8,
        )
        command = (*self.command, *self.quick)
        return replace(self, data=data, rows=rows, search=budget, command=command)


EULER = (("grid", "uniform"),)
FLOW_ROWS = (Row("euler", (1, 2, 4, 8), EULER), Row("dpmpp-2m", (4, 8, 20)))
STRAIGHT_ROWS = (Row("euler", (1, 2, 4, 8), EULER),)
NOISE_ROWS = (Row("dpmpp-2m", (2, 4, 8)), Row("karras-heun", (4, 8, 18)))
SMALL = Budget(
    counts=(3, 5, 8, 10),
    rungs=((10_000, 16), (16, 64), (6, 192)),
    parents=6,
    children=12,
    samples=128,
    finalists=2,
    final=512,
    batch_size=64,
    cloud=256,
)
FIT = ("fit", "--config")
TRIAL = ("--trainer.max_steps", "4", "--grid.every", "1000")
PAIRED = ("--pairs", "8192", "--steps", "1500", "--lr", "1e-3", "--ema", "0.995")
PAIRED += ("--sampler", "heun", "--sampler_steps", "12")
FEWER = ("--pairs", "4096", "--steps", "800", "--lr", "1e-3", "--ema", "0.995")
FEWER += ("--sampler", "heun", "--sampler_steps", "8")
FEWEST = ("--pairs", "2048", "--steps", "500", *FEWER[4:])
TINY = ("--pairs", "32", "--steps", "4", "--batch_size", "16")
UNET = "--model.init_args.net.init_args"

_ALL = (
    Recipe(
        "digits-1rf",
        "A rectified flow from noise to handwritten digits, with classes.",
        "flow",
        DIGITS,
        (*FIT, "configs/rectified/digits.yaml", "--run", "OUTPUT"),
        TRIAL,
        FLOW_ROWS,
        Budget(),
        ("rectified-flow",),
    ),
    Recipe(
        "digits-2rf",
        "The rectified successor of digits-1rf: its paths are nearly straight.",
        "flow",
        DIGITS,
        ("reflow", "zoo:digits-1rf", "OUTPUT", *PAIRED),
        TINY,
        STRAIGHT_ROWS,
        Budget(),
        ("rectified-flow", "reflow"),
    ),
    Recipe(
        "digits-distilled",
        "A student of digits-2rf that draws a digit in one call.",
        "student",
        DIGITS,
        ("distill", "zoo:digits-2rf", "OUTPUT", "--k", "1", *PAIRED),
        TINY,
        (Row("euler", (1,), EULER),),
        tags=("rectified-flow", "distillation"),
    ),
    Recipe(
        "digits-pfgmpp",
        "PFGM++ with D = 128: diffusion to digits under Student-t noise, with classes.",
        "diffusion",
        DIGITS,
        (*FIT, "configs/pfgmpp/digits.yaml", "--run", "OUTPUT"),
        TRIAL,
        NOISE_ROWS,
        Budget(),
        ("pfgmpp",),
    ),
    Recipe(
        "digits-edm",
        "EDM: diffusion to digits under Gaussian noise, with classes.",
        "diffusion",
        DIGITS,
        (*FIT, "configs/edm/digits.yaml", "--run", "OUTPUT"),
        TRIAL,
        NOISE_ROWS,
        Budget(),
        ("edm",),
    ),
    Recipe(
        "fashion-1rf",
        "A rectified flow from noise to pictures of clothes, with classes.",
        "flow",
        FASHION,
        (
            *(*FIT, "configs/rectified/fashion_mnist.yaml", "--run", "OUTPUT"),
            *("--data.init_args.root", "ROOT"),
            *(f"{UNET}.widths", "[16,32,64]", f"{UNET}.groups", "8"),
            *("--trainer.max_steps", "2500", "--model.init_args.lr", "2e-3"),
            *("--ema.decay", "0.995"),
        ),
        (*TRIAL, "--data.init_args.batch_size", "8"),
        (Row("euler", (1, 2, 4, 8), EULER), Row("dpmpp-2m", (4, 8))),
        SMALL,
        ("rectified-flow",),
    ),
    Recipe(
        "fashion-2rf",
        "The rectified successor of fashion-1rf: its paths are straighter.",
        "flow",
        FASHION,
        ("reflow", "zoo:fashion-1rf", "OUTPUT", *FEWER),
        TINY,
        STRAIGHT_ROWS,
        SMALL,
        ("rectified-flow", "reflow"),
    ),
    Recipe(
        "fashion-distilled",
        "A student of fashion-2rf that draws a piece of clothing in one call.",
        "student",
        FASHION,
        ("distill", "zoo:fashion-2rf", "OUTPUT", "--k", "1", *FEWEST),
        TINY,
        (Row("euler", (1,), EULER),),
        tags=("rectified-flow", "distillation"),
    ),
    Recipe(
        "digits-latent-bridge",
        "Digits of one class into another: a light Schrödinger bridge between latents.",
        "bridge",
        DIGITS,
        ("assets/zoo/latent.py", "OUTPUT"),
        ("--steps", "20"),
        tags=("schrodinger-bridge",),
    ),
)

RECIPES = {recipe.name: recipe for recipe in _ALL}
"""The recipes by name, teachers before their students."""
