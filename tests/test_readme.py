"""What the README shows runs as it stands, on a tiny pipeline and for fewer steps."""

from pathlib import Path
import re

import pytest

from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.pipelines import Pipeline

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=10, groups=4)
    pipe = Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), steps=2)
    pipe.save(tmp_path / "runs" / "digits" / "pipeline")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.strip().splitlines()[0][:40])
def test_a_block_runs(block, folder):
    names: dict = {}
    exec(compile(block.replace("max_steps=500", "max_steps=2"), "README.md", "exec"), names)
    if "alternating" in names:
        from genflow.solvers import PRESETS, schedule_for

        assert schedule_for("alternating", Rectified(), 4).steps[1].order == 2
        del PRESETS["alternating"]


def test_the_two_commands_come_first():
    commands = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert [c.strip() for c in commands[:2]] == ["make demo", "make test"]
    assert len(BLOCKS) >= 3
