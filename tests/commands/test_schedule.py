"""``genflow schedule``: tables that say what a schedule does, pictures, and paths kept."""

import json
import re

from PIL import Image
import pytest

from genflow.cli import main
from genflow.commands import schedule as verbs
from genflow.commands.listings import table
from genflow.errors import UserError
from genflow.models import Karras, Rectified, VariancePreserving, path_named, path_to_dict
from genflow.solvers import (
    Alteration,
    Corrector,
    SolverSchedule,
    Step,
    save_table,
    schedule_for,
    tabulate,
)

EVERYTHING = SolverSchedule(
    (1.0, 0.8, 0.6, 0.4, 0.2, 0.05),
    (
        Step(source="noise", correct=Corrector(relax=0.25)),
        Step(order=2, predict="noise", relax=-0.125),
        Step(order=3, points=((1,), (1, 2)), correct=Corrector()),
        Step(order=2, start=1),
        Step(eta=0.5, change=Alteration((0.5, 1))),
    ),
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments):
    code = main(["schedule", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def cells(text):
    """The table by step and column, cut where the header's words begin."""

    header, *rows = text.splitlines()
    names = header.split()
    starts = [header.index(n) for n in names] + [None]
    table = {}
    for row in rows:
        if (row[:1].isdigit() or row.startswith("end")) and ", NFE" not in row:
            parts = [row[a:b].strip() for a, b in zip(starts, starts[1:], strict=False)]
            found = dict(zip(names, parts, strict=True))
            table.setdefault(found["step"].split()[0], found)
    return table


def test_the_table_says_every_decision():
    rows = cells(table(EVERYTHING, VariancePreserving()))
    assert list(rows) == ["0", "1", "2", "3", "4", "end"]
    assert rows["0"]["source"] == "noise" and rows["1"]["source"] == "model"
    assert rows["0"]["corrector"] == "order 2 on 0 relax +0.250"
    assert rows["1"] | {"order": "2", "predict": "noise", "points": "1"} == rows["1"]
    assert rows["1"]["relax"] == "-0.125"
    assert rows["2"]["points"] == "1 | 1,2"
    assert rows["2"]["corrector"] == "order 4 on 0,2 | 0,2,3 | 0,2,3"
    assert rows["3"] | {"start": "1 back", "points": "0"} == rows["3"]
    assert rows["4"] | {"eta": "0.5", "change": "0.5,1"} == rows["4"]
    assert rows["0"]["λ"] == "-5.025" and rows["0"]["time"] == "1.000000"
    assert "5 steps, NFE 4, on VariancePreserving" in table(EVERYTHING, VariancePreserving())


def test_the_table_says_what_is_left_out():
    left_out = Alteration(drop=("a", "b"), reuse=("c",), guidance=False)
    changes = (Alteration(), left_out, Alteration((0.5, 1), reuse=("c", "d")))
    made = SolverSchedule((1.0, 0.5, 0.2, 0.0), tuple(Step(change=c) for c in changes))
    rows = cells(table(made))
    told = [rows[i]["change"] for i in "012"]
    assert told == ["–", "drops 2; reuses 1; unguided", "0.5,1; reuses 2"]


def test_infinite_and_unknown_lambda():
    made = schedule_for("ddim", Rectified(), 2)
    rows = cells(table(made, Rectified()))
    assert [rows[k]["λ"] for k in rows] == ["-∞", "+0.000", "+∞"]
    assert {row["λ"] for row in cells(table(made)).values()} == {"–"}
    assert "name it with --path" in table(made)


def test_make_show_compare_convert(capsys, tmp_path):
    code, out, _ = run(
        capsys, "make", "unipc", "--path", "karras", "--steps", "5", "--output", "a.json"
    )
    assert code == 0 and "schedule: a.json" in out
    assert SolverSchedule.load("a.json") == schedule_for("unipc", Karras(), 5)
    assert json.loads((tmp_path / "a.json").read_text())["path"] == path_to_dict(Karras())

    made = run(capsys, "show", "a.json", "--plot", "pictures/a.png")[1]
    assert made.startswith(out[: out.index("schedule:")])
    assert Image.open("pictures/a.png").size[0] > 800

    more = ["--options.order", "3", "--options.final", "min", "--steps", "5"]
    run(capsys, "make", "unipc", "--path", "Karras(sigma_max=40)", *more, "--output", "b.json")
    _, out, _ = run(capsys, "compare", "a.json", "b.json", "--plot", "ab.png")
    assert out.count("NFE 5") == 2 and "on Karras(sigma_max=40)" in out
    assert "They differ in path, times, order (step 2), relax (" in out
    assert Image.open("ab.png").size[1] > Image.open("pictures/a.png").size[1]
    assert run(capsys, "compare", "a.json", "a.json")[1].endswith("They are the same.\n")

    code, out, _ = run(
        capsys, "convert", "b.json", "--to", "VariancePreserving", "--output", "c.json"
    )
    assert code == 0
    moved, source = SolverSchedule.load("c.json"), SolverSchedule.load("b.json")
    assert moved == source.on(VariancePreserving(), Karras(sigma_max=40.0))
    _, out, _ = run(
        capsys, "convert", "c.json", "--to", "Karras", "--overwrite", "--output", "c.json"
    )
    assert "Note" not in out
    run(capsys, "make", "ddim", "--path", "VariancePreserving", "--output", "d.json")
    assert (
        "noisier than a model on Karras" in run(capsys, "convert", "d.json", "--to", "Karras")[1]
    )


def test_a_schedule_that_does_not_say_its_path(capsys):
    schedule_for("dpmpp-2m", Rectified(), 4).save("bare.json")
    assert "name it with --path" in run(capsys, "show", "bare.json", "--plot", "t.png")[1]
    assert "+∞" in run(capsys, "show", "bare.json", "--path", "Rectified")[1]
    code, _, err = run(capsys, "convert", "bare.json", "--to", "Karras")
    assert code == 2 and "does not say which path it is for: give --from" in err
    said = run(capsys, "convert", "bare.json", "--to", "Cosine", "--from", "Rectified")
    assert said[0] == 0 and "on Cosine" in said[1]


def test_the_path_of_a_pipeline(tmp_path, capsys):
    """A pipeline's folder names a path, and a schedule inside it needs no name."""

    folder = tmp_path / "pipe"
    folder.mkdir()
    path = Karras(sigma_min=0.01)
    (folder / "model_index.json").write_text(json.dumps({"path": path_to_dict(path)}))
    schedule_for("ddim", path, 3).save(folder / "schedule.json")
    assert path_named(str(folder)) == path
    assert "NFE 3, on Karras(sigma_min=0.01)" in run(capsys, "show", "pipe")[1]
    assert "on Karras(sigma_min=0.01)" in run(capsys, "show", "pipe/schedule.json")[1]
    assert run(capsys, "make", "ddim", "--path", "pipe", "--output", "n.json")[0] == 0
    assert path_named("n.json") == path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shwo"], "schedule verb is 'shwo': did you mean 'show'?"),
        (["show", "nothing.json"], "schedule 'nothing.json' cannot be read"),
        (["show", "bad.json"], "the schedule is not JSON"),
        (["show", "a.json", "--path", "Karas"], "did you mean 'Karras'"),
        (
            ["show", "a.json", "--path", "Karras"],
            "is for VariancePreserving, and wanted for Karras",
        ),
        (["show", "a.json", "--path", "Karras(3)"], "path is 'Karras(3)': a name as in Karras"),
        (["show", "a.json", "--path", "Karras(top=3)"], "path.top is no field of Karras"),
        (["show", "a.json", "--path", "Discrete"], "path is 'Discrete'"),
        (["show", "a.json", "--path", "bad.json"], "path 'bad.json' cannot be read"),
        (["show", "a.json", "--plot", "a.pdf"], "plot is 'a.pdf': a name that ends in .png"),
        (["convert", "a.json"], "give --to"),
        (["make", "heun", "--path", "Karras", "--output", "b.json"], "sampler 'heun' is a table"),
        (["make", "dopri5", "--path", "Karras"], "chooses its own steps"),
        (["make", "unipc"], "path is not given"),
        (["make", "unipc", "--path", "Karras", "--options.ordre", "3"], "did you mean 'order'"),
        (["make", "unipc", "--path", "Karras", "--output", "a.json"], "'a.json' exists"),
        (["make", "unipc", "--path", "Karras", "--steps", "0"], "steps is 0"),
    ],
)
def test_bad_arguments(arguments, words, capsys, tmp_path):
    schedule_for("ddim", VariancePreserving(), 3).save("a.json", VariancePreserving())
    (tmp_path / "bad.json").write_text("{")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1
    assert not (tmp_path / "b.json").exists()


def test_help(capsys):
    assert main(["schedule"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in verbs.VERBS)
    with pytest.raises(SystemExit):
        main(["schedule", "convert", "--help"])
    assert "--from FROM" in capsys.readouterr().out


def test_generate_refuses_a_schedule_of_another_path(tmp_path):
    file = tmp_path / "s.json"
    schedule_for("ddim", Karras(), 3).save(file, Karras())
    assert SolverSchedule.load(file, Karras()) == SolverSchedule.load(file)
    with pytest.raises(UserError, match="is for Karras, and wanted for Karras or for other par"):
        SolverSchedule.load(file, Karras(sigma_max=40))
    with pytest.raises(UserError, match="move it with 'genflow schedule convert'"):
        SolverSchedule.load(file, Rectified())


def test_samplers_fit_120_columns(capsys):
    verbs.samplers()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert any("dpm-v3" in line and "arXiv 2310.13268" in line for line in lines)


# -------------------------------------------------------------------------------- pictures


def marks(figure, gid=None):
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def test_a_score_has_a_note_a_step():
    from genflow.viz import score, scores

    figure = score(EVERYTHING, VariancePreserving(), "all")
    (axes,) = figure.axes
    assert [t for t in marks(figure) if t.isdigit()] == ["0", "1", "2", "3", "4"]
    assert "−0.12" in marks(figure)
    assert axes.get_title(loc="left") == "all: 5 steps, 4 calls of the network"
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert {"no call", "fresh noise", "network altered", "starts further back"} < set(legend)

    staves = [("A", EVERYTHING, VariancePreserving()), ("B", EVERYTHING, Rectified())]
    both = scores(staves)
    assert len(both.axes) == 2
    assert both.axes[0].get_xlim() == both.axes[1].get_xlim()
    assert "noise\n(−∞)" in [t.get_text() for t in both.axes[1].get_xticklabels()]
    timed = scores([("A", EVERYTHING, None)]).axes[0]
    assert timed.get_xlim()[0] > timed.get_xlim()[1] and "time" in timed.get_xlabel()
    many = score(schedule_for("ddim", VariancePreserving(), 50), VariancePreserving())
    assert not marks(many)


def test_a_table_of_weights_is_listed(tmp_path, capsys):
    """Every number of the file, in the column of what it multiplies."""

    path, file = Karras(), tmp_path / "table.json"
    found = tabulate(schedule_for("dpmpp-2m", path, 3), path)
    save_table(found, file, path)
    assert main(["schedule", "show", str(file)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", head) == ["call", "time", "λ", "x", "D", "D 1 back", "fresh noise"]
    for i, row in enumerate(found.weight.tolist()):
        told = [float(cell) for cell in rows[i].split()[3:]]
        assert told == pytest.approx([w for w in row if w], rel=1e-5)
    assert rows[3] == "3 rows, NFE 3, on Karras"

    assert main(["schedule", "show", str(file), "--plot", "x.png"]) == 2
    assert "without steps to draw" in capsys.readouterr().err
    assert main(["schedule", "show", str(file), "--path", "Rectified"]) == 2
    assert "a table cannot be moved" in capsys.readouterr().err
