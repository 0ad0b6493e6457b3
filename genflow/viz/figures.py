"""Figures that need no display, and images of them."""

__all__ = ["blank", "image_of"]

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches, which needs no display."""

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def image_of(figure: "Figure") -> Image.Image:
    """The picture that a figure draws."""

    figure.canvas.draw()
    return Image.frombuffer(
        "RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba()
    ).convert("RGB")
