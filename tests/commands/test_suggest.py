"""Advice on the degrees of freedom."""

import pytest

from genflow.cli import main


def test_numbers_of_cifar(capsys):
    assert main(["suggest-d", "--shape", "3,32,32", "--D", "64,2048,inf"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["N", "=", "3072", "coordinates"] in rows
    assert ["64", "48", "9.00%", "2.04%"] in rows
    assert ["2048", "1.5", "2.02%", "40.00%"] in rows
    assert ["inf", "0", "1.28%", "100.00%"] in rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "3,x"], "shape is '3,x'"),
        (["--shape", "3,0"], "shape is '3,0'"),
        (["--D", "many"], "D is 'many'"),
        (["--D", "64,0"], "D is 0.0"),
        (["--D", "nan"], "D is nan"),
    ],
)
def test_nonsense_gets_one_sentence(arguments, words, capsys):
    assert main(["suggest-d", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
