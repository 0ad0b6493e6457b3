"""What the page on gradients shows runs as it stands, block after block."""

from pathlib import Path
import re

from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.pipelines import Pipeline

PAGE = Path(__file__).parents[1] / "docs" / "gradients.md"


def test_the_blocks_on_gradients_run(tmp_path, monkeypatch, recwarn):
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=10, groups=4)
    pipe = Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), steps=2)
    pipe.save(tmp_path / "runs" / "digits" / "pipeline")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert len(blocks) >= 4
    assert names["x"].grad.any() and names["loss"].requires_grad and names["y"].requires_grad
