"""Two processes that train together: equal weights, no shared noise, and the run of one."""

import os

import pytest
from ranks import together, torchrun
from short_runs import fit, saver, tiny
import torch

from genflow.data import Digits
from genflow.errors import UserError
from genflow.training import EMA, RectifiedFlow
from genflow.training.launch import launched


class Noted(RectifiedFlow):
    """Keeps the numbers that are drawn."""

    def drawn(self, batch, **where):
        x, z, t, cond = super().drawn(batch, **where)
        self.seen.append((where["step"], x.clone(), z.clone(), t.clone()))
        return x, z, t, cond


def noted(**options):
    module = Noted(tiny(dropout=0.0).net, lr=1e-3, times=None, lot=8, **options)
    module.seen = []
    return module


def run(root, steps, size=8, ckpt=None, **options):
    module = noted()
    data = Digits(batch_size=size, flip=True)
    ema = EMA(0.9)
    fit(root, steps, ema, saver(root, 2), module=module, data=data, ckpt=ckpt, **options)
    weights = [*module.parameters(), *ema.weights().values()]
    return {"seen": module.seen, "weights": [w.detach().clone() for w in weights]}


def work(rank, folder):
    """Steps 0 to 3 on two ranks, and steps 2 and 3 after a run on one."""

    os.environ |= {
        "TORCHELASTIC_RUN_ID": "none",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    pair = {"devices": 2, "strategy": "ddp"}
    torch.save(run(folder / "two", 4, **pair), folder / f"two-{rank}.pt")
    torch.save(
        run(folder / "grown", 4, ckpt=folder / "one" / "step=2.ckpt", **pair),
        folder / f"grown-{rank}.pt",
    )


def gap(a, b):
    return max(float((p - q).abs().max()) for p, q in zip(a, b, strict=True))


@pytest.mark.slow
def test_two_ranks_are_one_run(tmp_path):
    whole = run(tmp_path / "one", 4, size=16)
    together(2, work, tmp_path, tmp_path)
    two, grown = (
        [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)]
        for name in ("two", "grown")
    )

    # both ranks end with the same weights and averages, to the bit
    for pair in (two, grown):
        assert gap(pair[0]["weights"], pair[1]["weights"]) == 0.0

    # ranks share no example, no noise and no time in any step
    for (step, x, z, t), (same, x_2, z_2, t_2) in zip(two[0]["seen"], two[1]["seen"], strict=True):
        assert step == same and len({*t.tolist(), *t_2.tolist()}) == 16
        for a, b in ((x, x_2), (z, z_2)):
            assert float(torch.cdist(a.flatten(1), b.flatten(1)).min()) > 0.1

    # laid together, they drew what one process draws for the same global batch
    for k, (step, *parts) in enumerate(whole["seen"]):
        for i, part in enumerate(parts, 1):
            assert torch.equal(part, torch.cat([two[r]["seen"][k][i] for r in range(2)])), step

    # so the weights are those of one process, up to the order of sums; they moved by far more
    start = [p.detach() for p in noted().parameters()]
    assert gap(start, whole["weights"][: len(start)]) > 1e-3
    assert gap(whole["weights"], two[0]["weights"]) < 1e-5

    # begun on one rank and gone on with on two, and the other way round
    assert [s for s, *_ in grown[0]["seen"]] == [2, 3]
    assert gap(grown[0]["weights"], whole["weights"]) < 1e-5
    back = run(tmp_path / "back", 4, size=16, ckpt=tmp_path / "two" / "step=2.ckpt")
    assert [s for s, *_ in back["seen"]] == [2, 3]
    assert torch.equal(back["seen"][0][1], whole["seen"][2][1])
    assert gap(back["weights"], whole["weights"]) < 1e-5


CONFIG = """
run: {run}
model:
  class_path: RectifiedFlow
  init_args:
    net:
      class_path: genflow.nn.MLP
      init_args: {{features: 2, width: 8, depth: 1}}
data:
  class_path: Toy
  init_args: {{name: moons, batch_size: 8}}
trainer: {{max_steps: 3, accelerator: cpu, enable_progress_bar: false}}
checkpoint: {{every_n_train_steps: 3}}
"""


@pytest.mark.slow
def test_torchrun_needs_no_numbers_in_the_config(tmp_path):
    """Also: the second process does not take the folder of the first for another run's."""

    (tmp_path / "c.yaml").write_text(CONFIG.format(run=tmp_path / "run"))
    said = torchrun(tmp_path / "c.yaml")
    assert said.count("pipeline:") == 1
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "devices: 2" in config and "num_nodes: 1" in config


# ----------------------------------------------------------------------------- who was started


def test_the_launcher_says_how_many():
    started = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    slurm = {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2"}
    assert launched(started) == (4, 2)
    assert launched(slurm) == (8, 2)
    assert launched(slurm | {"SLURM_JOB_NAME": "interactive"}) is None
    assert launched({"SLURM_NTASKS": "16"}) is None
    assert launched({}) is None


def test_later_processes_leave_the_folder_alone(tmp_path):
    from genflow.training.line import _claim

    (tmp_path / "checkpoints").mkdir()
    last, log = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "metrics.csv"
    last.touch(), log.touch()
    assert _claim(tmp_path, False, False, first=False) is None
    assert _claim(tmp_path, True, False, first=False) == last
    assert _claim(tmp_path, False, True, first=False) is None
    assert last.exists() and log.exists()
    with pytest.raises(UserError, match="exists"):
        _claim(tmp_path, False, False)
