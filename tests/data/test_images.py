"""Digits, torchvision's files, folders and zips; broken files, mixed sizes, lazy reading."""

from io import BytesIO
from itertools import islice
import json
import pickle
import struct
import zipfile

import numpy as np
from PIL import Image
import pytest
import torch

from genflow.data import Digits, ImageFolder, ImageZip, Torchvision
from genflow.errors import UserError


def picture(value, size=(6, 4), mode="RGB"):
    rng = np.random.default_rng(value)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def array(value, **options):
    return torch.from_numpy(np.array(picture(value, **options))).movedim(-1, 0)


def png(value, **options):
    data = BytesIO()
    picture(value, **options).save(data, "png")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three cats and two dogs, 6×4, named so that the order of writing is not that of names."""
    for name, value in [("dog/b", 4), ("cat/z", 2), ("cat/a", 0), ("dog/a", 3), ("cat/c", 1)]:
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return tmp_path / "set"


def test_digits_are_the_digits():
    data = Digits()
    x, label = data.train_set[:]["x"], data.train_set[:]["label"]
    assert x.shape == (1797, 1, 8, 8)
    assert (data.shape, data.classes, data.class_names) == ((1, 8, 8), 10, tuple("0123456789"))
    assert (int(x.min()), int(x.max()), len(x.unique())) == (0, 255, 17)
    assert set(x.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert int(x.long().sum()) == 8953801
    assert label[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert label.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # scikit-learn's first digit is a nought, hollow in the middle
    assert x[0, 0, 3].tolist() == [0, 64, 191, 0, 0, 128, 128, 0]


def test_digits_reach_a_model_as_floats():
    data = Digits(batch_size=16)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["x"].dtype == torch.float32
    assert batch["x"].min() >= -1
    assert batch["x"].max() == 1
    assert batch["label"].dtype == torch.int64


@pytest.mark.parametrize("in_memory", [True, False])
def test_folder_reads_pixels_in_order_and_names_classes(folder, in_memory):
    data = ImageFolder(folder, in_memory=in_memory)
    batch = data.train_set[:]
    assert data.shape == (3, 4, 6)
    assert data.class_names == ("cat", "dog")
    assert batch["label"].tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(batch["x"], torch.stack([array(v) for v in (0, 1, 2, 3, 4)]))


def test_labels_can_be_refused_and_need_sub_folders(folder):
    assert ImageFolder(folder, labels=False).classes is None
    (folder / "loose.png").write_bytes(png(9))
    data = ImageFolder(folder)
    assert data.classes is None
    assert set(data.train_set[:]) == {"x"}
    assert len(data.train_set) == 6


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "webp", "bmp"])
def test_other_formats_are_read_and_other_files_are_not(folder, suffix):
    kind = {"JPG": "jpeg"}.get(suffix, suffix)
    picture(7).save(folder / "cat" / f"new.{suffix}", kind)
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "._a.png").write_bytes(b"a file that some systems leave beside a.png")
    assert len(ImageFolder(folder, corrupt="stop").train_set) == 6


def test_grey_becomes_colour_and_colour_grey(tmp_path):
    grey = picture(1, mode="L")
    grey.save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.png")
    x = ImageFolder(tmp_path, channels=3).reference()
    assert torch.equal(x[0], torch.from_numpy(np.array(grey)).expand(3, 4, 6))
    y = ImageFolder(tmp_path, channels=1).reference()
    assert y.shape == (2, 1, 4, 6)
    assert torch.equal(y[0, 0], x[0, 0])
    assert torch.equal(y[1, 0], torch.from_numpy(np.array(picture(2).convert("L"))))


def test_sixteen_bits_are_scaled_and_lying_pictures_turned(tmp_path):
    deep = np.array([[0, 256, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert ImageFolder(tmp_path, channels=1).reference().flatten().tolist() == [0, 1, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    picture(0, size=(3, 1)).save(tmp_path / "a.png", exif=exif)
    for in_memory in (True, False):
        data = ImageFolder(tmp_path, in_memory=in_memory)
        assert data.shape == (3, 3, 1)
        assert torch.equal(data.reference()[0, :, :, 0], array(0, size=(3, 1))[:, 0])


def test_size_scales_the_shorter_side_and_cuts_the_centre(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20, 0] = 255  # the middle third is red
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    x = ImageFolder(tmp_path, size=5).reference()
    assert x.shape == (2, 3, 5, 5)
    assert (x[:, 0, 1:4, 1:4] > 250).all()  # Lanczos rings a little
    assert (x[:, 1:] == 0).all()
    small = ImageFolder(tmp_path, size=20).reference()  # upwards too
    assert small.shape == (2, 3, 20, 20)


def test_corrupt_images_are_skipped_counted_and_named_once(folder):
    for name in ("cat/a", "cat/b", "dog/a", "dog/q"):
        (folder / f"{name}.png").write_bytes(b"not a png")
    data = ImageFolder(folder)
    with pytest.warns(UserWarning) as caught:
        data.setup()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "4 of 7" in message
    assert "cat/a.png, cat/b.png, dog/a.png, …" in message
    assert data.skipped == ["cat/a.png", "cat/b.png", "dog/a.png", "dog/q.png"]
    assert data.train_set[:]["label"].tolist() == [0, 0, 1]
    assert torch.equal(data.reference(), torch.stack([array(v) for v in (1, 2, 4)]))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-60] + bytes(60)])
def test_corrupt_can_stop(folder, damage):
    path = folder / "cat" / "c.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"c\.png' cannot be decoded"):
        ImageFolder(folder, corrupt="stop").setup()
    with pytest.warns(UserWarning, match="1 of 5"):
        assert len(ImageFolder(folder).train_set) == 4


def test_a_body_that_breaks_is_replaced_when_read_lazily(folder):
    path = folder / "cat" / "c.png"
    path.write_bytes(path.read_bytes()[:60])  # the header is whole
    examples = ImageFolder(folder, in_memory=False).train_set
    assert len(examples) == 5
    with pytest.warns(UserWarning, match="next picture takes its place"):
        batch = examples[[0, 1, 2]]
    assert torch.equal(batch["x"], torch.stack([array(v) for v in (0, 2, 2)]))
    with pytest.raises(UserError, match=r"c\.png' cannot be decoded"):
        ImageFolder(folder, in_memory=False, corrupt="stop").train_set[[1]]


def test_lazy_reading_equals_reading_at_once(folder):
    options = {"size": 4, "batch_size": 3, "validation": 0.4}
    batches = [
        list(islice(ImageFolder(folder, in_memory=m, **options).train_dataloader(), 4))
        for m in (True, False)
    ]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["x"], other["x"])
        assert torch.equal(one["label"], other["label"])


def test_mixed_sizes_are_named(folder):
    (folder / "dog" / "c.png").write_bytes(png(0, size=(5, 5)))
    for in_memory in (True, False):
        with pytest.raises(UserError) as caught:
            ImageFolder(folder, in_memory=in_memory).setup()
        words = ["'cat/a.png' is 6×4", "'dog/c.png' is 5×5", "set size"]
        assert all(word in str(caught.value) for word in words)
    assert len(ImageFolder(folder, size=4).train_set) == 6


def test_useless_folders_are_named(tmp_path):
    cases = {"nothing": "does not exist", "empty": "holds no image", "file.png": "is a file"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(png(0))
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            ImageFolder(tmp_path / name).setup()
        assert name in str(caught.value)
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 1 images.*'a\.png'"):
        ImageFolder(tmp_path / "empty").setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, "channels is 4.*1, 3"),
        ({"corrupt": "halt"}, "corrupt is 'halt'.*skip, stop"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ImageFolder("anywhere", **options)


def packed(path, labels="none", broken=()):
    names = [f"00/{i}.png" for i in range(4)]
    with zipfile.ZipFile(path, "w") as archive:
        for i in reversed(range(4)):
            archive.writestr(names[i], b"broken" if i in broken else png(i))
        archive.writestr("__MACOSX/00/0.png", b"no image")
        if labels != "none":
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


PAIRS = [[f"00/{i}.png", (i * 2) % 3] for i in range(4)]


def test_zip_reads_pixels_in_order_and_labels(tmp_path):
    data = ImageZip(packed(tmp_path / "set.zip", PAIRS))
    assert torch.equal(data.reference(), torch.stack([array(v) for v in range(4)]))
    assert data.train_set[:]["label"].tolist() == [0, 2, 1, 0]
    assert (data.classes, data.class_names) == (3, None)


def test_zip_without_labels(tmp_path):
    assert ImageZip(packed(tmp_path / "a.zip")).classes is None
    assert ImageZip(packed(tmp_path / "b.zip", None)).classes is None
    assert ImageZip(packed(tmp_path / "c.zip", PAIRS), labels=False).classes is None


def test_zip_skips_what_is_broken_and_keeps_labels_in_step(tmp_path):
    path = packed(tmp_path / "set.zip", PAIRS, broken=[1])
    with pytest.warns(UserWarning, match=r"1 of 4 .*00/1\.png"):
        data = ImageZip(path)
        data.setup()
    assert data.train_set[:]["label"].tolist() == [0, 1, 0]
    with pytest.raises(UserError, match=r"00/1\.png"):
        ImageZip(path, corrupt="stop").setup()


def test_zip_is_read_lazily_by_workers_and_survives_pickling(tmp_path):
    path = packed(tmp_path / "set.zip", PAIRS)
    lazy = ImageZip(path, in_memory=False, batch_size=3, workers=2)
    plain = ImageZip(path, batch_size=3)
    pairs = zip(lazy.train_dataloader(), islice(plain.train_dataloader(), 6), strict=False)
    assert all(torch.equal(one["x"], other["x"]) for one, other in pairs)
    copy = pickle.loads(pickle.dumps(lazy.train_set))
    assert torch.equal(copy[:]["x"], plain.reference())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["00/0.png", 0]], r"gives '00/1\.png' the class None"),
        ([[name, [0, 1]] for name, _ in PAIRS], r"the class \[0, 1\]"),
        ([[name, -1] for name, _ in PAIRS], "the class -1"),
        ([1, 2], "cannot be read"),
    ],
)
def test_bad_labels_are_named(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        ImageZip(packed(tmp_path / "set.zip", labels)).setup()


def test_useless_zips_are_named(tmp_path):
    (tmp_path / "text.zip").write_text("not a zip")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    cases = {"text.zip": "not a zip file", "gone.zip": "No such file", "empty.zip": "no image"}
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            ImageZip(tmp_path / name).setup()
        assert name in str(caught.value)


def test_torchvision_says_where_to_put_the_files(tmp_path):
    places = {"MNIST": "MNIST/raw", "CIFAR10": "cifar-10-batches-py"}
    for name, place in places.items():
        with pytest.raises(UserError, match=f"{place}.*or set download to true"):
            Torchvision(name, root=tmp_path).setup()
    with pytest.raises(UserError, match="name is 'CIFAR-10'.*CIFAR10"):
        Torchvision("CIFAR-10")


def test_torchvision_reads_idx_files(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    images = struct.pack(">IIII", 2051, 20, 28, 28) + x.tobytes()
    labels = struct.pack(">II", 2049, 20) + bytes(i % 10 for i in range(20))
    for half in ("train", "t10k"):
        (raw / f"{half}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(labels)
    data = Torchvision("FashionMNIST", root=tmp_path)
    assert torch.equal(data.reference()[:, 0], torch.from_numpy(x))
    assert data.train_set[[11]]["label"].tolist() == [1]
    assert (data.classes, data.class_names[9]) == (10, "Ankle boot")
    (raw / "train-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match="FashionMNIST/raw"):
        Torchvision("FashionMNIST", root=tmp_path).setup()
