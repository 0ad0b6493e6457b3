r"""Networks of diffusers that are told, beside the class, how their image was augmented.

diffusers adds the embedding of a class to that of the time, :math:`e = e_t + e_c`. Here a linear
map of the augmentation's label :math:`a`, without a bias, joins them,

.. math:: e = e_t + e_c + W a,

so the label zero, the one of an image as it is, adds exactly nothing: at sampling time the network
is the stock one with the same weights. Nothing else about the two models differs, neither their
blocks nor how they are saved.
"""

__all__ = ["AugmentedDiT", "AugmentedUNet", "Labels", "stock"]

import inspect
from typing import Any

from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from genflow.errors import UserError


class Labels(nn.Module):
    """The embedding of a class and of an augmentation, as one vector.

    Args:
        classes: What embeds the classes, or None.
        features: The number of features of the augmentation's label, 1 or more.
        width: The width of the embedding.
    """

    def __init__(self, classes: nn.Module | None, features: int, width: int) -> None:
        super().__init__()

        self.classes = classes
        self.augment = nn.Linear(features, width, bias=False)

    def forward(self, labels: tuple[Tensor | None, Tensor]) -> Tensor:
        """Embeds classes with shape (B) and augmentations with shape (B, features)."""

        label, augment = labels
        e = self.augment(augment.to(self.augment.weight.dtype))
        return e if self.classes is None else e + self.classes(label)


def _one_more(cls: type) -> inspect.Signature:
    """The arguments of a model of diffusers, from which it reads its config, and ``augment``."""

    known = inspect.signature(cls.__init__).parameters.values()
    more = inspect.Parameter("augment", inspect.Parameter.KEYWORD_ONLY, annotation=int)
    return inspect.Signature([*known, more])


class AugmentedUNet(UNet2DModel):
    """diffusers' `UNet2DModel`, told how its image was augmented.

    Its ``class_labels`` are a pair: class numbers or None, and the augmentation's labels.

    Args:
        augment: The number of features of the augmentation's label, 1 or more.
        options: Those of `UNet2DModel`.
    """

    def __init__(self, *, augment: int, **options: Any) -> None:
        super().__init__(**options)
        self.register_to_config(augment=augment)
        width = self.time_embedding.linear_2.out_features
        self.class_embedding = Labels(self.class_embedding, augment, width)

    __init__.__signature__ = _one_more(UNet2DModel)


class AugmentedDiT(DiTTransformer2DModel):
    """diffusers' `DiTTransformer2DModel`, told how its image was augmented.

    Its ``class_labels`` are a pair, as those of `AugmentedUNet`; each block embeds it, as each
    embeds the class.

    Args:
        augment: The number of features of the augmentation's label, 1 or more.
        options: Those of `DiTTransformer2DModel`.
    """

    def __init__(self, *, augment: int, **options: Any) -> None:
        super().__init__(**options)
        self.register_to_config(augment=augment)
        for block in self.transformer_blocks:
            told = block.norm1.emb
            told.class_embedder = Labels(told.class_embedder, augment, self.inner_dim)

    __init__.__signature__ = _one_more(DiTTransformer2DModel)


def stock(model: nn.Module) -> nn.Module:
    """A model that loads without genflow and answers as the given one does to the label zero.

    Args:
        model: A model of diffusers, or an `AugmentedUNet` without classes.

    Returns:
        The model itself if it is a stock one; else a `UNet2DModel` that shares the weights.

    Raises:
        UserError: If there is none.
    """

    if isinstance(model, AugmentedDiT) or (
        isinstance(model, AugmentedUNet) and model.class_embedding.classes is not None
    ):
        raise UserError(f"an {type(model).__name__} with classes has no stock twin.")
    if not isinstance(model, AugmentedUNet):
        return model

    config = {k: v for k, v in model.config.items() if k != "augment" and not k.startswith("_")}
    twin = UNet2DModel.from_config(config)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("class_embedding.")}
    twin.load_state_dict(weights, assign=True)
    return twin.train(model.training)
