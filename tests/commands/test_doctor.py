"""`genflow doctor`: what it finds, and that it notices what is wrong."""

import json

import pytest
import torch

from genflow.cli import main
from genflow.commands import doctor as room
from genflow.solvers import Sampler
from genflow.version import __version__


def findings(capsys, code=0):
    assert main(["doctor", "--json", "true"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_findings_as_json(capsys):
    found = findings(capsys)
    assert found["versions"]["genflow"] == __version__
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["threads"]["in an operation"] == torch.get_num_threads()
    assert found["devices"]["cpu"]["memory"].endswith(" GB")
    assert set(found["checks"].values()) == {"ok"} and len(found["checks"]) == 2
    assert found["healthy"] is True
    assert {"genflow", "Hugging Face", "torch hub", "zoo"} <= set(found["caches"])


def test_the_findings_for_the_eye(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"genflow       {__version__}" in text and text.endswith("all is well\n")
    assert "closed form  ok" in text


def test_a_solver_that_is_wrong_is_noticed(capsys, monkeypatch):
    plain = Sampler.forward
    monkeypatch.setattr(Sampler, "forward", lambda self, x, **c: plain(self, x, **c) + 1e-9)
    found = findings(capsys, 1)
    assert found["checks"]["a step of DDIM, against its closed form"] == "off by 1.0e-09"
    assert found["healthy"] is False


def test_files_that_come_back_as_others_are_noticed(capsys, monkeypatch):
    import safetensors.torch as st

    plain = st.load
    monkeypatch.setattr(st, "load", lambda b: {k: v + 1 for k, v in plain(b).items()})
    assert findings(capsys, 1)["checks"]["safetensors, there and back"] == "other numbers"
    monkeypatch.setattr(st, "load", lambda b: 1 / 0)
    assert "ZeroDivisionError" in findings(capsys, 1)["checks"]["safetensors, there and back"]


def test_missing_packages_are_named_with_what_installs_them(capsys, monkeypatch):
    monkeypatch.setattr(room, "NEEDED", ("torch", "no-such-package"))
    monkeypatch.setattr(room, "OPTIONAL", {"no-such-thing": ("nothing", "pip install it")})
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "no-such-package  MISSING" in text and text.endswith("see above\n")
    assert "none; for nothing: pip install it" in text


def test_caches_are_measured(tmp_path, monkeypatch):
    (tmp_path / "models--a--b").mkdir()
    with (tmp_path / "models--a--b" / "x").open("wb") as file:
        file.truncate(250_000_000)
    found = room._held(tmp_path)
    assert found["size"] == "0.2 GB" and found["holds"] == "models--a--b"
    assert room._held(tmp_path / "none")["holds"] == "nothing"


def test_the_list_of_needs_is_that_of_the_package():
    from importlib import metadata
    import re

    names = [re.match(r"[\w.-]+", r)[0] for r in metadata.requires("genflow") if "extra" not in r]
    if not names:
        pytest.skip("genflow is not installed")
    assert set(names) == set(room.NEEDED)
