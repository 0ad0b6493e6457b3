"""Data: examples, in the order in which training sees them.

A `DataModule` loads `Examples`, holds some out, streams the rest without end (`StreamSampler`),
and hands the model float batches on its device. The order, the split and the flips are pure
functions of the seed and the place in the stream: a resumed run sees what an unbroken one would
have seen, whatever the number of ranks, as long as the global batch is the same.
"""

__all__ = [
    "Arrays",
    "Clouds",
    "DataModule",
    "Digits",
    "Domain",
    "Examples",
    "Given",
    "ImageFolder",
    "ImageManifest",
    "ImageStore",
    "ImageZip",
    "KnownPlan",
    "LatentManifest",
    "LatentStore",
    "Latents",
    "Manifest",
    "Packed",
    "PairStore",
    "Pairs",
    "StreamSampler",
    "Tensors",
    "Torchvision",
    "Toy",
    "Translation",
    "anisotropic",
    "cloud_named",
    "draw_toy",
    "images_of",
    "isotropic",
    "mirrored",
    "named",
    "pack",
    "seeded",
    "to_float",
    "to_uint8",
]

from importlib import import_module

_ROOMS = {
    "base": ("DataModule",),
    "domains": ("Domain",),
    "eot": ("KnownPlan", "anisotropic", "isotropic"),
    "examples": ("Examples", "Tensors"),
    "given": ("Arrays", "Given"),
    "images": ("Digits", "ImageFolder", "ImageZip", "Torchvision"),
    "latents": ("LatentManifest", "LatentStore", "Latents"),
    "named": ("images_of", "named"),
    "packed": ("ImageManifest", "ImageStore", "Packed", "pack"),
    "pairs": ("Manifest", "PairStore", "Pairs"),
    "clouds": ("Clouds", "cloud_named"),
    "pixels": ("mirrored", "to_float", "to_uint8"),
    "stream": ("StreamSampler", "seeded"),
    "translation": ("Translation",),
    "toy": ("Toy", "draw_toy"),
}


def __getattr__(name: str) -> object:
    """Imports a name when it is first asked for: most of them bring Lightning along."""

    for module, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"genflow.data.{module}"), name)

    raise AttributeError(f"module 'genflow.data' has no attribute '{name}'")
