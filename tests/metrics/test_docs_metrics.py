"""What the page on evaluation shows of the metrics runs as it stands, block after block."""

from pathlib import Path
import re

import pytest

from genflow.metrics import METRICS
from genflow.metrics.features import REGISTRY

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.slow
def test_the_blocks_on_metrics_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8").split("## Further reading")[0]
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    for block in blocks[:2]:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["result"]["metrics"]["frechet"]["ratio"] > 5
    assert (tmp_path / "reference-digits" / "features.npy").is_file()


def test_the_page_knows_every_metric_and_feature():
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in [*METRICS, *REGISTRY])
