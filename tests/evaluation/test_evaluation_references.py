"""References: kept by content, told of, and refused where they are of another net."""

from albums import pictures, save
import pytest
import torch

from genflow.errors import UserError
from genflow.evaluation import evaluate, opened, planned
from genflow.evaluation.references import References, reference_of

DATA = pictures(40, channels=1, seed=1)
X = pictures(20, channels=1)


def stored(folder, data=DATA, feature="random-conv,pixels", points=True):
    source = opened(data)
    for name, net in planned(feature, "fd", source.shape).nets.items():
        reference_of(source, net, points=points, say=lambda t: None).save(folder / name)
    return folder


def numbers(report):
    return {
        (net, metric): entry["value"]
        for net, measure in report["measures"].items()
        for metric, entry in measure["metrics"].items()
        if "value" in entry
    }


def test_the_cache_is_used_by_content_and_that_is_said(tmp_path):
    said = []
    job = {"feature": "random-conv", "metrics": "fd", "halvings": 0, "say": said.append}
    one = evaluate(X, DATA, **job)
    two = evaluate(X, save(tmp_path / "same images", DATA), **job)
    evaluate(X, DATA.flip(0), **job)
    assert ["made, and kept" in t for t in said] == [True, False, True]
    assert said[1].endswith("40 data on random-conv-1x8-0, from the cache")
    assert numbers(one) == numbers(two)
    assert one["data"]["sha256"] == two["data"]["sha256"]


def test_a_stored_reference_stands_for_the_data(tmp_path):
    folder = stored(tmp_path / "ref")
    direct = evaluate(X, DATA, feature="random-conv,pixels", metrics="fd,prdc", halvings=2)
    report = evaluate(X, folder, metrics="fd,prdc", halvings=2)
    values = {(n.split("-1x")[0], m): v for (n, m), v in numbers(report).items()}
    assert values == numbers(direct)
    assert report["data"]["kind"] == "reference" and len(References(folder)) == 40

    one = evaluate(X, folder / "pixels", metrics="fd", halvings=0)
    assert set(numbers(one)) == {("pixels", "frechet")}


def test_moments_alone_give_the_frechet_distance_and_say_why_no_more(tmp_path, cache):
    folder = stored(tmp_path / "ref", points=False, feature="random-conv")
    report = evaluate(X, folder, metrics="fd,swd", halvings=2)
    (entries,) = (m["metrics"] for m in report["measures"].values())
    assert "value" in entries["frechet"] and "moments" in entries["sliced-wasserstein"]["reason"]
    assert any("no floors, since only the moments" in text for text in report["warnings"])


def test_a_reference_of_another_net_is_refused_before_any_work(tmp_path, monkeypatch):
    folder = stored(tmp_path / "ref", feature="random-conv")
    monkeypatch.setattr("genflow.evaluation.jobs._look", lambda *a: pytest.fail("too late"))
    with pytest.raises(UserError, match="feature 'random-conv-1x8-0'.*not with 'pixels'"):
        evaluate(X, folder, feature="pixels", metrics="fd")
    with pytest.raises(UserError, match="32×32 pixels and the data 8×8"):
        evaluate(pictures(5, channels=1, size=32), folder)


def test_references_of_different_data_do_not_share_a_folder(tmp_path):
    stored(tmp_path / "ref", feature="random-conv")
    stored(tmp_path / "ref", data=DATA[:30], feature="pixels")
    with pytest.raises(UserError, match="of different data"):
        References(tmp_path / "ref")


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "file"))
    said = []
    report = evaluate(X, DATA, feature="pixels", metrics="fd", halvings=0, say=said.append)
    assert "nothing is kept there" in said[0] and torch.tensor(list(numbers(report).values())) > 0


@pytest.mark.parametrize(
    ("feature", "metrics", "words"),
    [
        ("random-cov", "fd", "did you mean 'random-conv'"),
        (None, "frechett", "did you mean 'frechet'"),
        ("", "fd", "feature is ''"),
        (None, ",", "metrics is ','"),
        ("identity", "fd", "identity"),
    ],
)
def test_names_of_nets_and_metrics(feature, metrics, words):
    with pytest.raises(UserError, match=words):
        planned(feature, metrics, (1, 8, 8))


def test_what_a_plan_makes_of_names():
    plan = planned("random-conv,pixels", "fd,prdc,pixels:energy", (1, 8, 8))
    four = ("precision", "recall", "density", "coverage")
    assert plan.metrics == {
        "random-conv": ("frechet", *four),
        "pixels": ("frechet", *four, "energy"),
    }
    said = []
    default = planned(None, "fd", (1, 8, 8), say=said.append)
    assert list(default.nets) == ["random-conv", "genflow-small"] and "inception" in said[0]
    assert list(planned(None, "fd", (3,)).nets) == ["identity"]
    oblong = planned(None, "fd", (1, 8, 9), say=said.append)
    assert list(oblong.nets) == ["genflow-small"], "what suits no such images is left out"
