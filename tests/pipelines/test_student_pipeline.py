"""A pipeline keeps the law of its noise: saved, loaded, sampled from, and refused if nonsense."""

import json
import math

import pytest
from scipy import stats
import torch

from genflow.cli import main
from genflow.errors import UserError
from genflow.models import StudentT
from genflow.nn import MLP
from genflow.pipelines import Pipeline
from genflow.training import PFGMPP


def saved(folder, D, **options):
    torch.manual_seed(0)
    module = PFGMPP(MLP(6, 16, 1), D, **options)
    pipe = Pipeline(module.denoiser, (6,), sampler="karras-heun", steps=4)
    pipe.save(folder, overwrite=True)
    return pipe


@pytest.mark.parametrize(
    ("D", "how"), [(0.5, "edm"), (128.0, "edm"), (math.inf, "edm"), (3.0, "second-moment")]
)
def test_round_trip(tmp_path, D, how):
    pipe = saved(tmp_path / "p", D, sigma_max=20.0, preconditioning=how)

    def strict(text):
        raise ValueError(text)

    index = (tmp_path / "p" / "model_index.json").read_text()
    assert json.loads(index, parse_constant=strict)["path"]["sigma_max"] == 20.0
    other = Pipeline.from_pretrained(tmp_path / "p")
    assert other.denoiser.path == pipe.denoiser.path
    assert other.denoiser.path.noise.D == D
    ours, theirs = pipe(5, seed=1).x, other(5, seed=1).x
    scale = 20 * float(StudentT(D).radius(6).quantile(0.99))  # of the states on the way
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("sigma_max", [3.0, 380.0])
def test_samples_start_from_the_prior_of_the_record(tmp_path, sigma_max):
    saved(tmp_path / "p", 4.0, sigma_max=sigma_max)
    pipe = Pipeline.from_pretrained(tmp_path / "p")
    g = [torch.Generator().manual_seed(s) for s in range(2000)]
    start = pipe.build().init((2000, 6), generator=g)
    cdf = pipe.denoiser.path.noise.radius(6, sigma_max).cdf
    assert stats.kstest(start.double().norm(dim=1), cdf).pvalue > 1e-3


def test_churn_and_refusals_from_the_command_line(tmp_path, capsys):
    saved(tmp_path / "p", 8.0)
    common = ["generate", str(tmp_path / "p"), "--n", "3", "--overwrite"]
    common += ["--output", str(tmp_path / "out")]
    churn = ["--sampler", "karras-heun", "--options.churn", "4", "--options.churn_law"]
    assert main([*common, *churn, "path"]) == 0
    assert main([*common, *churn, "gaussian"]) == 0
    assert main([*common, *churn, "laplace"]) == 2
    assert main([*common, "--sampler", "ddpm"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "churn_law is 'laplace'" in err[-2] and "follow the score" in err[-1]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("D", "lots", "path.D is 'lots'"), ("D", -2, "D is -2.0"), ("sigma_max", 1e-5, "sigma_max")],
)
def test_a_record_of_nonsense_is_refused(tmp_path, field, value, words):
    saved(tmp_path / "p", 8.0)
    file = tmp_path / "p" / "model_index.json"
    index = json.loads(file.read_text())
    index["path"][field] = value
    file.write_text(json.dumps(index))
    with pytest.raises(UserError, match=words):
        Pipeline.from_pretrained(tmp_path / "p")
