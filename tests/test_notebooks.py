"""The notebooks run from top to bottom, and are kept without outputs."""

import json

import pages as book
import pytest

NOTEBOOKS = sorted((book.ROOT / "docs" / "notebooks").glob("*.ipynb"))


def name(file):
    return file.name


@pytest.mark.parametrize("file", NOTEBOOKS, ids=name)
def test_it_is_kept_without_outputs(file):
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert code and all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    assert cells[0]["source"][0].startswith("# ")
    assert file.name in (file.parent / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=name)
def test_it_runs(file, tmp_path):
    from nbclient import NotebookClient
    import nbformat

    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
