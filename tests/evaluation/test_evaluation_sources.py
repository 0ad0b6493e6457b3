"""Sources: one set of images reads alike from everything; what cannot be used is told at once."""

import zipfile

from albums import nhwc, pictures, save
import numpy as np
from PIL import Image
import pytest
import torch

from genflow.errors import UserError
from genflow.evaluation import opened
from genflow.evaluation.drawn import Drawn
from genflow.evaluation.forms import Form, check_alike
from genflow.evaluation.opening import opened_data, opened_samples
from genflow.evaluation.sources import Held
from genflow.metrics.references import DataHash

X = pictures()


def zipped(folder, file):
    with zipfile.ZipFile(file, "w") as archive:
        for p in sorted(folder.iterdir()):
            archive.write(p, p.name)
    return file


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The same images in everything that can hold them."""

    root = tmp_path_factory.mktemp("shelf")
    folder = save(root / "folder", X)
    save(root / "job" / "images", X)
    (root / "job" / "grid.png").write_bytes((folder / "0000.png").read_bytes())
    labels = np.arange(len(X)) % 4
    np.savez(root / "adm.npz", nhwc(X), labels)
    np.savez_compressed(root / "packed.npz", images=X.numpy())
    np.save(root / "one.npy", X.numpy())
    return {
        "folder": folder,
        "zip": zipped(folder, root / "all.zip"),
        "adm": root / "adm.npz",
        "packed": root / "packed.npz",
        "npy": root / "one.npy",
        "job": root / "job",
    }


KINDS = ("folder", "zip", "adm", "packed", "npy", "job")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_in_any_wrapping(shelf, kind):
    source = opened(shelf[kind])
    assert (len(source), source.shape) == (40, (3, 8, 8))
    assert torch.equal(torch.cat(list(source)), X)
    assert torch.equal(source.read([3, 4, 17, 39]), X[[3, 4, 17, 39]])
    assert torch.equal(source.read([5, 2]), X[[5, 2]]), "backwards, too"

    digest = DataHash()
    digest.update(X)
    assert source.sha256 == digest.hexdigest()
    assert sum(map(len, source.batches(range(7), 3))) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_converted_alike(shelf, kind):
    form = Form(channels=1, size=4)
    one = opened(shelf[kind], form)
    assert one.shape == (1, 4, 4)
    assert torch.equal(torch.cat(list(one)), torch.cat(list(Held(X, form=form))))
    first = Image.fromarray(nhwc(X)[0]).convert("L").resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(one.read([0])[0, 0].numpy(), np.asarray(first))


def test_classes_of_an_array_are_counted(shelf):
    assert opened(shelf["adm"]).record()["classes"] == {str(k): 10 for k in range(4)}
    assert "classes" not in opened(shelf["packed"]).record()


def test_grey_images_stay_grey(tmp_path):
    grey = pictures(6, channels=1)
    assert torch.equal(torch.cat(list(opened(save(tmp_path / "g", grey)))), grey)
    np.savez(tmp_path / "g.npz", grey[:, 0].numpy())
    assert torch.equal(torch.cat(list(opened(tmp_path / "g.npz"))), grey)


def test_vectors_come_from_arrays_and_from_the_folder_of_a_job(tmp_path):
    x = torch.randn(9, 3)
    (tmp_path / "job").mkdir()
    np.save(tmp_path / "job" / "samples.npy", x.numpy())
    np.save(tmp_path / "x.npy", x.double().numpy())
    assert torch.equal(opened(tmp_path / "job").read(range(9)), x)
    assert torch.equal(opened(tmp_path / "x.npy").read(range(9)), x)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "dtype float32: 8-bit images"),
        ({"arr_0": np.zeros((4, 8, 8, 5), np.uint8)}, "1 or 3 channels"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "holds the arrays a, b"),
        ({"arr_0": np.array([{"a": 1}])}, "shape \\(1,\\) and dtype object"),
        ({"arr_0": np.zeros((4, 8, 8), np.uint8), "arr_1": np.zeros(3)}, "classes of shape \\(3,"),
        ({"arr_0": np.asfortranarray(np.zeros((4, 8, 8, 3), np.uint8))}, "Fortran order"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "x.npz")


def test_a_damaged_array_is_told(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, X.numpy())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="row 39 of array .* .the file ends early"):
        opened(file).read([39])

    file.write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot be read"):
        opened(file)
    np.savez(tmp_path / "x.npz", X.numpy())
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[2000] ^= 255
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(UserError, match="the file is damaged"):
        torch.cat(list(opened(tmp_path / "x.npz")))


def test_unreadable_files_are_listed_and_counted(tmp_path):
    folder = save(tmp_path / "f", X)
    (folder / "0003.png").write_bytes(b"")
    broken = (folder / "0007.png").read_bytes()
    (folder / "0007.png").write_bytes(broken[: len(broken) // 2])

    with pytest.raises(UserError, match=r"2 of 40 .*0003.png, 0007.png.*skip_unreadable true"):
        opened(folder)

    source = opened(folder, skip_unreadable=True)
    assert source.record()["unreadable"] == ["0003.png", "0007.png"]
    kept = [i for i in range(40) if i not in (3, 7)]
    assert torch.equal(torch.cat(list(source)), X[kept])

    (folder / "0001.png").unlink()
    with pytest.raises(UserError, match="'0001.png' .* has changed since the job began"):
        source.read([1])


def test_a_folder_that_is_called_like_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "digits", X)
    assert opened("digits").shape == (1, 8, 8) and len(opened("digits")) == 1797
    assert opened_data("digits", Form()).shape == (1, 8, 8)
    for source in (opened("./digits"), opened("digits", samples=True)):
        assert (len(source), source.shape) == (40, (3, 8, 8))
    assert opened_samples("digits", Form(), n=None, count=9)[0].shape == (3, 8, 8)


def test_a_folder_of_nothing_but_rubbish_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="1 of 1 images .* check that they are images"):
        opened(tmp_path, skip_unreadable=True)


def test_mixed_sizes_and_mixed_colours_name_the_option(tmp_path):
    folder = save(tmp_path / "f", X[:3])
    save(folder, pictures(1, size=12), start=3)
    with pytest.raises(UserError, match="'0000.png' is 8×8 pixels and '0003.png' 12×12: say --si"):
        opened(folder)
    assert opened(folder, Form(size=8)).shape == (3, 8, 8)

    save(folder, pictures(1, channels=1), start=3)
    with pytest.raises(UserError, match="'0003.png' is grey and '0000.png' in colour: say --chan"):
        opened(folder)
    assert opened(folder, Form(channels=1)).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ((1, 8, 8), (3, 8, 8), "samples are grey and the data in colour: say --channels 1 or"),
        ((3, 8, 8), (1, 8, 8), "samples are in colour and the data grey"),
        ((3, 8, 8), (3, 32, 32), "8×8 pixels and the data 32×32: say --size 32"),
        ((2,), (3,), "vectors of the same width"),
        ((2,), (3, 8, 8), "images against images"),
    ],
)
def test_two_sides_that_differ(one, other, words):
    with pytest.raises(UserError, match=words):
        check_alike(one, other)


def test_values_of_a_form():
    with pytest.raises(UserError, match="channels is 2"):
        Form(channels=2)
    with pytest.raises(UserError, match="size is 0"):
        Form(size=0)
    with pytest.raises(UserError, match="a tensor has shape"):
        Held(torch.zeros(3, 4, 5))


def test_image_i_has_seed_first_plus_i_whatever_it_is_drawn_with(pipe):
    label = pipe.labels(None, 6)
    source = Drawn(pipe, 6, first=10, repeats=2, label=label, options={"steps": 3})
    x = torch.cat(list(source.batches(range(12), 5)))
    alone = pipe(seeds=[17], label=int(label[1]), sampler="euler", steps=3).uint8
    assert (x[7].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(x[1], x[7]), "the second range has other seeds"
    assert source.nfe == 3
    record = source.record()
    assert record["seeds"] == [[10, 15], [16, 21]] and len(record["weights"]) == 64
    assert record["sampler"]["steps"] == 3 and record["classes"] == {"0": 2, "1": 2, "2": 2}


def test_samples_that_are_not_finite_stop_the_job(pipe):
    with torch.no_grad():
        next(pipe.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="2 samples are not finite, of seed 4 first"):
        Drawn(pipe, 2, first=4, label=pipe.labels(None, 2)).read([0, 1])
    with pytest.raises(UserError, match="repeats is 0"):
        Drawn(pipe, 2, repeats=0)
