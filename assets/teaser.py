"""Draws ``assets/teaser.png`` from the models of the zoo alone.

    python assets/teaser.py [--output assets/teaser.png]

Four panels: the best presets and searched solvers at few calls from the same noise; two
diffusions under different noise; a bridge from digits to other digits; and clothes by a rectified
flow, its successor, and the one-step student of that. Pixels are enlarged and not smoothed. Labels
give the distance over the floor where a card has one. What the zoo lacks is left out.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
import torch
from torch import Tensor

from genflow import zoo
from genflow.data import Digits, to_float
from genflow.search.seeds import presets

WIDTH, MARGIN, GAP = 1600, 28, 5
INK, SOFT, PAPER = (28, 32, 44), (112, 118, 132), (255, 255, 255)
GREY, BLUE, TEAL = (70, 74, 84), (24, 78, 170), (8, 112, 108)
PLUM, RUST = (106, 44, 132), (176, 72, 22)
SEED, CLASSES, COUNTS = 100, 10, ("3", "5", "10")
FRAMES = 13

Colour = tuple[int, int, int]


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The sans serif that matplotlib carries, so that it is there everywhere."""

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


@dataclass(frozen=True)
class Row:
    """Pictures in a line, with a label on the left and a note on the right.

    Attributes:
        label: What stands on the left.
        images: In [0, 1], with shape (n, 1, H, W).
        ink: The colour of a full pixel.
        note: What stands on the right.
        end: The colour that the last picture has, if the ink changes on the way.
    """

    label: str
    images: Tensor
    ink: Colour
    note: str = ""
    end: Colour | None = None


def tile(image: Tensor, ink: Colour, scale: int) -> Image.Image:
    """A grey picture as ink on paper, its pixels enlarged."""

    light = image[0].clamp(0, 1)[..., None]
    colours = torch.tensor(PAPER) * (1 - light) + torch.tensor(ink) * light
    pixels = colours.round().to(torch.uint8).repeat_interleave(scale, 0)
    return Image.fromarray(pixels.repeat_interleave(scale, 1).contiguous().numpy())


class Sheet:
    """The picture while it is drawn."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def title(self, x: int, y: int, head: str, below: str) -> int:
        """A heading with a line under it; says where it ends."""

        self.draw.text((x, y), head, INK, font(21, bold=True))
        self.draw.text((x, y + 30), below, SOFT, font(15))
        return y + 62

    def rows(self, x: int, y: int, rows: Sequence[Row], scale: int, indent: int) -> int:
        """Rows one below the other; says where they end."""

        for row in rows:
            side = row.images.shape[-1] * scale
            middle = y + side // 2
            self.draw.text((x, middle), row.label, row.end or row.ink, font(16, True), "lm")
            for i, image in enumerate(row.images):
                share = i / max(1, len(row.images) - 1)
                ink = row.ink if row.end is None else mixed(row.ink, row.end, share)
                at = (x + indent + i * (side + GAP), y)
                self.image.paste(tile(image, ink, scale), at)
                self.draw.rectangle((*at, at[0] + side - 1, y + side - 1), None, (226, 229, 236))
            right = x + indent + len(row.images) * (side + GAP) + 8
            self.draw.text((right, middle), row.note, row.end or row.ink, font(16), "lm")
            y += side + GAP
        return y


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """A colour between two."""

    red, green, blue = (round(p + share * (q - p)) for p, q in zip(a, b, strict=True))
    return red, green, blue


def drawn(name: str, **call: object) -> Tensor:
    """One picture of each class, from the same seeds for all models."""

    return zoo.load(name)(CLASSES, seed=SEED, label=list(range(CLASSES)), **call).uint8 / 255


def over_floor(name: str, sampler: str, steps: int) -> str:
    """The distance over the floor in a card's table, as a note."""

    found = zoo.card(name)["distances"]
    first = next(iter(found["features"]))
    rows = [r for r in found["table"] if (r["sampler"], r["steps"]) == (sampler, steps)]
    return f"{rows[0][first]['over_floor']:.3g}" if rows else ""


# ---------------------------------------------------------------------------------- the panels


def searched(sheet: Sheet, y: int) -> int:
    """The best presets beside searched solvers, from the same noise."""

    name = "fashion-1rf" if "fashion-1rf" in zoo.names() else "digits-1rf"
    card, pipe, (left, right) = zoo.card(name), zoo.load(name), (MARGIN, MARGIN + 770)
    plain: list[Row] = []
    found: list[Row] = []

    for count in [c for c in COUNTS if c in card["schedules"]]:
        entry = card["schedules"][count]
        pair = next(iter(entry["measured"].values()))
        best = "tuned" if "tuned" in pair else "searched"
        solver = (zoo.table if best == "tuned" else zoo.schedule)(name, int(count))
        preset = dict(presets(pipe.denoiser.path, int(count)))[entry["preset"]]

        ours, theirs = (f"{pair[who]['over_floor']:.3g}" for who in (best, "preset"))
        label = f"{count} calls"
        plain.append(Row(label, drawn(name, schedule=preset), GREY, theirs))
        found.append(Row(label, drawn(name, schedule=solver), BLUE, ours))

    what = "clothes" if name == "fashion-1rf" else "digits"
    below = f"a rectified flow of {what}; on the right the distance to the data, 1 is perfect"
    top = sheet.title(left, y, "The best of 250 presets", below)
    below = "the same flow from the same noise, by steps with searched times and weights"
    sheet.title(right, y, "A searched solver", below)
    scale = 56 // pipe.shape[-1]
    return max(sheet.rows(x, top, r, scale, 86) for x, r in ((left, plain), (right, found)))


def clothes(sheet: Sheet, x: int, y: int) -> int:
    """A rectified flow, its successor and its student, by Euler steps."""

    asked = (("fashion-1rf", 1, GREY), ("fashion-1rf", 2, GREY), ("fashion-1rf", 8, GREY))
    asked += (("fashion-2rf", 1, PLUM), ("fashion-2rf", 2, PLUM), ("fashion-distilled", 1, RUST))
    labels = {"fashion-1rf": "1-RF", "fashion-2rf": "2-RF", "fashion-distilled": "distilled"}
    rows = []

    for name, steps, ink in asked:
        if name in zoo.names():
            images = drawn(name, sampler="euler", steps=steps, grid="uniform")
            label = f"{labels[name]}, {steps}"
            rows.append(Row(label, images, ink, over_floor(name, "euler", steps)))

    below = "rectified flows of Fashion-MNIST and numbers of Euler steps, same noise"
    head = "Straightened" + (", then distilled" if "fashion-distilled" in zoo.names() else "")
    return sheet.rows(x, sheet.title(x, y, head, below), rows, 2, 112)


def diffusions(sheet: Sheet, x: int, y: int) -> int:
    """Gaussian and Student-t noise, by EDM's sampler; and a student, in one call."""

    call = {"sampler": "karras-heun", "steps": 18}
    asked = {"digits-edm": ("EDM", GREY), "digits-pfgmpp": ("PFGM++", TEAL)}
    rows = [
        Row(label, drawn(name, **call), ink, over_floor(name, "karras-heun", 18))
        for name, (label, ink) in asked.items()
        if name in zoo.names()
    ]
    if "digits-distilled" in zoo.names():
        images = drawn("digits-distilled", sampler="euler", steps=1, grid="uniform")
        note = f"{over_floor('digits-distilled', 'euler', 1)}, in one call"
        rows.append(Row("distilled", images, RUST, note))

    below = "EDM and PFGM++ by Heun's method in 35 calls; a one-step student of a flow"
    return sheet.rows(x, sheet.title(x, y, "Gaussian or Student-t noise", below), rows, 5, 96)


def bridges(sheet: Sheet, x: int, y: int) -> int:
    """Digits that no bridge has seen, on their way to other digits."""

    pipe, digits = zoo.load("digits-latent-bridge"), Digits().load()
    times = torch.linspace(1, 0, FRAMES).tolist()
    rows = []

    for label, name in enumerate(pipe.class_names):
        held = torch.arange(len(digits.label)) % 5 == 0
        start = digits.x[held & (torch.as_tensor(digits.label) == int(name[0]))][1:2]
        path = pipe.trajectory(start, times, seed=SEED, label=label)[:, 0]
        path = torch.cat((to_float(start), path[1:]))
        rows.append(Row(name.replace(" to ", " → "), (path + 1) / 2, RUST, end=BLUE))

    below = "a light Schrödinger bridge between latents; the digits on the left are unseen"
    return sheet.rows(x, sheet.title(x, y, "Digits into digits", below), rows, 5, 86)


def teaser() -> Image.Image:
    """The whole picture."""

    sheet = Sheet(4 * WIDTH)
    middle = searched(sheet, MARGIN) + 26
    left = clothes(sheet, MARGIN, middle)
    right = diffusions(sheet, MARGIN + 850, middle) + 22
    right = bridges(sheet, MARGIN + 850, right)
    return sheet.image.crop((0, 0, WIDTH, max(left, right) + MARGIN - GAP))


def main() -> None:
    """Draws it, and saves it."""

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args()
    teaser().save(options.output, optimize=True)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
