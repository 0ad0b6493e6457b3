"""The pictures of light Schrödinger bridges, and the numbers that go with them.

swiss_roll.png     from a normal cloud to the Swiss roll, for three values of ε
snapshots.png      a population that branches; the snapshot in the middle was held out
translation.png    digits of one class into another, in the latent space of an autoencoder

python benchmarks/bridges.py --pictures FOLDER
"""

from pathlib import Path
import time

from PIL import Image
from sklearn.datasets import load_digits
import torch
from torch import nn

from genflow.data import draw_toy
from genflow.data.stream import seeded
from genflow.metrics import bw_uvp, energy_distance, sliced_wasserstein
from genflow.models import LightBridge
from genflow.viz import grid_of, journey


def below(*images):
    """Pictures under each other."""

    wide, high = max(i.width for i in images), sum(i.height for i in images)
    page = Image.new("RGB", (wide, high), "white")
    top = 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height
    return page


def swiss_roll():
    """Three bridges from one source to one target."""

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20_000, 2, generator=g), draw_toy("swiss-roll", 20_000, noise=0.08).x
    rows = []
    for eps, components in ((0.01, 200), (0.1, 50), (1.0, 50)):
        begun = time.process_time()
        bridge = LightBridge.fit(x, y, epsilon=eps, components=components)
        seconds = time.process_time() - begun
        times = torch.linspace(1, 0, 41).tolist()
        paths = bridge.trajectory(x[:3000], times, method="bridge", generator=g)
        gap = sliced_wasserstein(paths[-1], y[:3000])
        print(f"swiss roll, ε = {eps:g}: {seconds:.1f} CPU s, sliced W2 {gap:.3f}")
        rows.append(journey(x[:3000], y[:3000], paths, names=(f"source, ε = {eps:g}", "target")))
    floor = sliced_wasserstein(y[:3000], y[3000:6000])
    print(f"swiss roll: sliced W2 of two draws of the target {floor:.3f}")
    return below(*rows)


# ------------------------------------------------------------------------------- snapshots


def branching(n, times, generator, dimension=5, dt=0.01):
    """Snapshots of a population of cells that drifts, and parts into two branches.

    The first coordinate grows; the second leaves 0 for one of two valleys that open as it does;
    the rest relaxes towards 0. Each snapshot is of cells of its own.
    """

    snapshots = []
    for time_ in times:
        x = 0.25 * torch.randn(n, dimension, generator=generator)
        for _ in range(round(time_ / dt)):
            u, v = x[:, 0], x[:, 1]
            drift = -0.5 * x
            drift[:, 0] = 1.5 - 0.2 * u
            drift[:, 1] = 2.0 * v * u.clamp(min=0) - 2.5 * v**3
            x = x + drift * dt + (0.15 * dt) ** 0.5 * torch.randn(x.shape, generator=generator)
        snapshots.append(x)
    return snapshots


def snapshots():
    """The middle of three snapshots, from the outer two, beside what simpler guesses score."""

    g = torch.Generator().manual_seed(0)
    first, middle, last, again = branching(4000, (0.5, 1.25, 2.0, 1.25), g)
    bridge = LightBridge.fit(first, last, epsilon=0.15 * 1.5, components=30)
    paths = bridge.trajectory(first, [1 - i / 40 for i in range(41)], method="bridge", generator=g)
    shuffled = last[torch.randperm(len(last), generator=g)]
    guesses = {
        "bridge at t = ½": paths[20],
        "the first snapshot": first,
        "the last snapshot": last,
        "halves of random pairs": 0.5 * (first + shuffled),
        "another draw of the truth": again,
    }
    print("held-out snapshot:           energy distance   sliced W2   BW2-UVP %")
    for name, guess in guesses.items():
        numbers = energy_distance(guess, middle), sliced_wasserstein(guess, middle)
        print(f"  {name:26} {numbers[0]:14.4f} {numbers[1]:11.3f} {bw_uvp(guess, middle):11.2f}")
    on_way = paths[:21]
    return below(
        journey(first, last, paths, names=("snapshot 1", "snapshot 3")),
        journey(first, middle, on_way, names=("snapshot 1", "snapshot 2, held out")),
    )


# ----------------------------------------------------------------------------- translation


class Autoencoder(nn.Module):
    """A small one for 8×8 digits."""

    def __init__(self, latent=12, width=256):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(64, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, latent),
        )
        self.decode = nn.Sequential(
            nn.Linear(latent, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 64),
        )


def trained_autoencoder(x, steps=3000):
    g = seeded("autoencoder", 0)
    torch.manual_seed(0)
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (128,), generator=g)]
        z = model.encode(batch)
        z = z + 0.05 * torch.randn(z.shape, generator=g)  # neighbours decode to neighbours
        loss = (model.decode(z) - batch).square().mean() + 1e-3 * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def _latents(model, x):
    return model.encode(x)


def translation(pairs=((3, 8), (1, 7), (4, 9), (0, 6))):
    """Digits of a class that the fit has not seen, the states on the way, and what they become."""

    stored = load_digits()
    x = torch.from_numpy(stored.data / 8 - 1).float()
    label = torch.from_numpy(stored.target)
    train = torch.arange(len(x)) % 5 > 0
    model = trained_autoencoder(x[train])
    z = _latents(model, x)
    error = (model.decode(z) - x)[~train].square().mean().sqrt()
    print(f"autoencoder: rms error {float(error):.3f} of pixels in [−1, 1], digits not seen")

    from sklearn.linear_model import LogisticRegression

    judge = LogisticRegression(max_iter=2000).fit(x[train], label[train])
    g, rows = torch.Generator().manual_seed(0), []
    for a, b in pairs:
        begun = time.process_time()
        bridge = LightBridge.fit(
            z[train & (label == a)], z[train & (label == b)], epsilon=0.1, components=5
        )
        seconds = time.process_time() - begun
        start = z[~train & (label == a)]
        path = bridge.trajectory(start, (1, 0.75, 0.5, 0.25, 0), method="bridge", generator=g)
        with torch.no_grad():
            images = model.decode(path).clamp(-1, 1)
        named = judge.predict(images[-1].numpy()) == b
        other = z[train & (label == b)]
        near = torch.cdist(start, path[-1]).diagonal().mean()
        far = torch.cdist(start, other).mean()
        print(
            f"{a} → {b}: {seconds:.1f} CPU s; {100 * named.mean():.0f} % read as {b}; moved "
            f"{float(near):.2f}, a random {b} is {float(far):.2f} away"
        )
        images = torch.cat((x[~train & (label == a)][None], images[1:]))[:, :12]
        big = nn.functional.interpolate(
            images.unflatten(2, (8, 8)), scale_factor=6, mode="bicubic"
        )
        rows.append(((big + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).flatten(0, 1))
    return below(*(grid_of(row[:, None], columns=12, scale=1) for row in rows))


def draw(folder):
    """Draws all pictures into a folder."""

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for make in (swiss_roll, snapshots, translation):
        make().save(place / f"{make.__name__}.png")
        print(f"written: {place / make.__name__}.png\n", flush=True)
