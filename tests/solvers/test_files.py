"""Tables and schedules in files, and the samplers that run what a search found."""

import json

from oracles import PATHS, mixture
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Exact, Karras
from genflow.solvers import Sampler, SolverSchedule, Step, Tableau, build, schedule_for
from genflow.solvers.files import load_table, read_solver, save_table

TABLES = [
    ("ipndm", {}),
    ("heun", {}),
    ("deis", {"variable": "rho"}),
    ("karras-heun", {"churn": 2}),
]


@pytest.mark.parametrize(("name", "options"), TABLES, ids=[n for n, _ in TABLES])
def test_a_table_comes_back_bit_for_bit(name, options, tmp_path):
    path, file = Karras(), tmp_path / "table.json"
    table = schedule_for(name, path, 6, **options)
    save_table(table, file, path)
    again = load_table(file, path)
    for field in ("time", "weight", "noise"):
        assert torch.equal(getattr(again, field), getattr(table, field))
    assert (again.reads, again.source, again.nfe) == (table.reads, table.source, table.nfe)
    assert (again.start is None) == (table.start is None)
    assert isinstance(read_solver(file, path), Tableau)


@pytest.mark.parametrize("name", ["usf", "autodiffusion"])
@pytest.mark.parametrize("kind", ["karras", "rectified"])
def test_searched_samplers_run_a_file(name, kind, tmp_path):
    path = PATHS[kind]
    denoiser, file = Exact(path, mixture()), tmp_path / "schedule.json"
    z = torch.randn(4, 2, dtype=torch.float64)
    schedule = schedule_for("unipc", path, 5)
    schedule.save(file, path)
    sampler = build(name, denoiser, file=str(file))
    assert sampler.nfe == 5 and sampler.schedule == schedule
    assert torch.equal(sampler(z), Sampler(denoiser, schedule)(z))

    table = schedule_for("ipndm", path, 4)
    save_table(table, file, path)
    assert torch.equal(build(name, denoiser, file=str(file))(z), Sampler(denoiser, table)(z))


def test_searched_samplers_need_a_file_and_no_grid(tmp_path):
    denoiser = Exact(Karras(), mixture())
    with pytest.raises(UserError, match="sampler 'usf' runs what a search found: give its file"):
        build("usf", denoiser)
    with pytest.raises(UserError, match="has the option 'grid'"):
        build("usf", denoiser, file="x", grid="karras")
    with pytest.raises(UserError, match="cannot be read"):
        build("usf", denoiser, file=str(tmp_path / "nothing.json"))


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / "table.json"
    save_table(schedule_for("ipndm", Karras(), 3), file, Karras())
    return file


def test_a_table_of_another_path_is_refused(saved):
    with pytest.raises(UserError, match="a table cannot be moved"):
        load_table(saved, Karras(rho=6))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "is no table: its format is 'x'"),
        ({"version": 2}, "version 2"),
        ({"weight": [[1.0, 2.0]]}, "3 times, weights of shape"),
        ({"noise": [0.0]}, "1 noises"),
        ({"time": None}, "lacks a field or has a wrong one"),
        ({"reads": "date"}, "reads is 'date': did you mean 'data'"),
        ({"source": "modle"}, "source is 'modle': did you mean 'model'"),
        ({"path": {"class": "Karra"}}, "did you mean 'Karras'"),
    ],
)
def test_damaged_tables(saved, change, words):
    record = json.loads(saved.read_text()) | change
    saved.write_text(json.dumps(record))
    with pytest.raises(UserError, match=words):
        load_table(saved)


def test_only_plain_tables_are_saved(tmp_path):
    from genflow.solvers import stack

    tables = [schedule_for("ddim", Karras(), 3)] * 2
    population = stack([Sampler(Exact(Karras(), mixture()), s).tableau for s in tables], 2)
    with pytest.raises(UserError, match="only a plain table"):
        save_table(population, tmp_path / "t.json", Karras())


def test_other_json_is_neither(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("[]")
    with pytest.raises(UserError, match="no schedule"):
        read_solver(file)
    SolverSchedule((1.0, 0.5), (Step(),)).save(file)
    assert isinstance(read_solver(file, Karras()), SolverSchedule)
