"""utils/arrays.py: arrays in files train as they are, or a line says what is wrong with them."""

import gzip
import struct

import numpy as np
import pytest

from utils import arrays, data
from utils.dataset import DataError, draw_split, ids_of
from utils.settings import SettingsError, from_params

RNG = np.random.default_rng(0)
GREY = RNG.integers(256, size=(20, 6, 8), dtype=np.uint8)
GREY[0, 0, :2] = 0, 255
SQUARE = GREY[:, :, :6]
LABELS = np.arange(20) % 3


def idx(array, code=8):
    return struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def loaded(path, said=None):
    return arrays.load(str(path), [].append if said is None else said.append)


def refused(path):
    with pytest.raises(DataError) as error:
        loaded(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def everything(dataset):
    """Images and labels of both parts, sorted by the images' bytes, so that shuffling has no effect."""
    images = np.concatenate((dataset.train_images, dataset.test_images))
    order = np.lexsort(images.reshape(len(images), -1).T)
    return images[order], np.concatenate((dataset.train_labels, dataset.test_labels))[order]


def assert_holds(dataset, images, labels=None):
    images, order = (
        images.reshape(len(images), *dataset.train_images.shape[1:]),
        np.lexsort(images.reshape(len(images), -1).T),
    )
    found, of_images = everything(dataset)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images[order])
    np.testing.assert_array_equal(of_images, np.zeros(len(images)) if labels is None else labels[order])


@pytest.mark.parametrize(
    "names",
    [
        "x_train y_train x_test y_test", "train_images train_labels test_images test_labels", "X_tr Y_tr X_te Y_te",
        "trainX trainY valX valY", "imgs_train targets_train imgs_dev targets_dev", "Xtrain ytrain Xtest ytest",
    ],
)  # fmt: skip
def test_parts_and_labels_of_an_npz_are_known_by_their_names(names, tmp_path):
    keys = names.split()
    np.savez(tmp_path / "my set.npz", **dict(zip(keys, (GREY[:15], LABELS[:15], GREY[15:], LABELS[15:]), strict=True)))
    dataset = loaded(tmp_path / "my set.npz")
    assert_holds(dataset, GREY, LABELS)
    np.testing.assert_array_equal(dataset.test_images[..., 0], GREY[15:])
    np.testing.assert_array_equal(dataset.test_labels, LABELS[15:])
    assert dataset.train_labels.tolist() != LABELS[:15].tolist()  # shuffled
    assert dataset.details["split"] == (
        f"my set.npz: {keys[0]} and my set.npz: {keys[2]}; labels from my set.npz: {keys[1]} and my set.npz: {keys[3]}"
    )
    assert (dataset.title, dataset.details["sizes"]) == ("my set", "8 x 6")


@pytest.mark.parametrize("names", ["images labels", "X y", "arr_0 arr_1", "data target", "faces label"])
def test_without_test_images_a_tenth_is_drawn(names, tmp_path):
    np.savez(tmp_path / "data.npz", **dict(zip(names.split(), (GREY, LABELS), strict=True)))
    dataset = loaded(tmp_path)
    assert_holds(dataset, GREY, LABELS)
    assert len(dataset.test_images) == 2
    assert dataset.details["split"] == (
        "a tenth, drawn by a fixed key, of data.npz: {}; labels from data.npz: {}".format(*names.split())
    )


def test_the_tenth_keeps_copies_together_and_follows_from_the_images_and_not_their_order():
    ids = ids_of(np.repeat(RNG.integers(256, size=(50, 2, 2, 1), dtype=np.uint8), 2, axis=0))
    labels = np.repeat(np.arange(50) % 5, 2)
    train, test = draw_split(labels, ids)
    assert sorted([*train, *test]) == [*range(100)]
    assert len(test) == 10
    assert not np.isin(ids[test], ids[train]).any()
    assert np.bincount(labels[test]).tolist() == [2] * 5
    assert (np.diff(train) < 0).any()
    order = RNG.permutation(100)
    assert set(ids[order][draw_split(labels[order], ids[order])[1]]) == set(ids[test])
    assert [len(part) for part in draw_split(np.arange(6500), np.arange(6500, dtype=np.uint64))] == [5850, 650]
    assert [len(part) for part in draw_split(np.zeros(2), np.arange(2, dtype=np.uint64))] == [1, 1]
    with pytest.raises(DataError, match=r"^images: 3, but no two differ; "):
        draw_split(np.zeros(3), np.ones(3, np.uint64))


def as_written(kind, images):
    """Files of images (N, H, W) by name, and the number of test images."""
    if kind == "npy":
        return {"train.npy": images[:15], "test.npy": images[15:]}, 5
    if kind == "idx":
        return {
            "train-images-idx3-ubyte": idx(images[:15]),
            "t10k-images-idx3-ubyte.gz": gzip.compress(idx(images[15:])),
        }, 5
    text = "\n".join(",".join(map(str, row)) for row in images.reshape(len(images), -1))
    return {"all.csv.gz": gzip.compress(text.encode())}, 2


@pytest.mark.parametrize("kind", ["npy", "idx", "csv"])
@pytest.mark.parametrize("place", ["", "mnist", "a/b"])
def test_files_are_found_by_their_folder_or_their_name(kind, place, tmp_path):
    files, tested = as_written(kind, SQUARE)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = tmp_path / place / name
        np.save(path, content) if kind == "npy" else path.write_bytes(content)
    (tmp_path / place / "notes.txt").write_text("1,2")
    for path in (tmp_path, tmp_path / place / next(iter(files))):
        assert_holds(dataset := loaded(path), SQUARE)
        assert len(dataset.test_images) == tested
    assert loaded(tmp_path).details["left_out"] == ["1 x not a file of arrays (e.g. notes.txt)"]


def test_labels_in_files_of_their_own_belong_to_the_images(tmp_path):
    for part, at in (("train", slice(15)), ("test", slice(15, 20))):
        np.savez(tmp_path / f"kmnist-{part}-imgs.npz", GREY[at])
        np.savez(tmp_path / f"kmnist-{part}-labels.npz", LABELS[at])
    assert_holds(loaded(tmp_path), GREY, LABELS)
    np.save(tmp_path / "other.npy", GREY)
    assert ", kmnist-train-imgs.npz, kmnist-train-labels.npz, other.npy; set DATA_DIR to one of" in refused(tmp_path)
    assert_holds(loaded(tmp_path / "kmnist-train-imgs.npz"), GREY, LABELS)
    assert_holds(loaded(tmp_path / "other.npy"), GREY)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
@pytest.mark.parametrize("header", ["", "label,pixel0", "id,label,pixel0", "text", "0"])
def test_a_csv_has_labels_and_a_header_or_not(delimiter, header, tmp_path):
    names, labels = ("ant", "bee", "fly"), LABELS
    rows = [
        [names[label] if header == "text" else label, *image.ravel()]
        for label, image in zip(LABELS, SQUARE, strict=True)
    ]
    if header.startswith("id"):
        rows = [[number, *row] for number, row in enumerate(rows)]
    if header == "0":  # a table without column names
        rows.insert(0, range(37))
    if "pixel0" in header:
        rows.insert(0, header.split(",") + [f"pixel{n}" for n in range(1, 36)])
    (tmp_path / "a.csv").write_text("\n".join(delimiter.join(map(str, row)) for row in rows) + "\n")
    assert_holds(dataset := loaded(tmp_path / "a.csv"), SQUARE, labels)
    assert dataset.label_names == (names if header == "text" else ())
    assert dataset.details["split"].endswith(
        f"of a.csv; labels from a.csv: column {2 if header.startswith('id') else 1}"
    )


def test_kaggles_digits_train_though_their_test_images_have_no_labels(tmp_path):
    columns = ",".join(f"pixel{n}" for n in range(36))
    row = [",".join(map(str, image.ravel())) for image in SQUARE]
    (tmp_path / "train.csv").write_text(
        f"label,{columns}\n" + "".join(f"{k},{r}\n" for k, r in zip(LABELS, row, strict=True))
    )
    (tmp_path / "test.csv").write_text(f"{columns}\n" + "".join(f"{r}\n" for r in row))
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n2,0\n")
    assert_holds(dataset := loaded(tmp_path), SQUARE, LABELS)
    assert dataset.details["left_out"] == [
        "1 x no images in it (e.g. sample_submission.csv)",
        "test.csv: images without labels, while the others have some",
    ]


COLOUR = RNG.integers(256, size=(20, 6, 6, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(20), np.add.outer(np.add.outer(np.arange(6), np.arange(6)), [0, 90, 180])).astype(
    np.uint8
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (GREY, GREY), (GREY[..., None], GREY), (GREY[:, None], GREY), (SQUARE.reshape(20, -1), SQUARE),
        (SQUARE.reshape(20, -1, 1), SQUARE), (COLOUR, COLOUR), (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (SMOOTH.reshape(20, -1), SMOOTH), (SMOOTH.transpose(0, 3, 1, 2).reshape(20, -1), SMOOTH),
        (np.concatenate((COLOUR, np.full((20, 6, 6, 1), 255, np.uint8)), axis=3), COLOUR),
        (np.concatenate((COLOUR, np.zeros((20, 6, 6, 1), np.uint8)), axis=3)[:2], None),
    ],
)  # fmt: skip
def test_images_may_have_any_layout(given, expected, tmp_path):
    given[0, 0] |= 0  # the arrays are not changed by another test
    np.save(tmp_path / "a.npy", given)
    if expected is None:  # transparent pixels become white, so both images are the same
        assert "no two differ" in refused(tmp_path)
    else:
        assert_holds(loaded(tmp_path), expected)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (GREY, "0 to 255 of 0 to 255"),
        (GREY.astype(np.int64), "0 to 255 of 0 to 255"), (GREY.astype(">f4"), "0 to 255 of 0 to 255"),
        (GREY / 255, "0 to 1, so 0 to 1 are scaled to 0 to 255"),
        ((GREY / 255 * 1.0005).astype(np.float16), "0 to 1, so 0 to 1 are scaled to 0 to 255"),
        (GREY / 127.5 - 1, "-1 to 1, so -1 to 1 are scaled to 0 to 255"),
        (GREY.astype(np.uint16) * 257, "0 to 65535 (uint16), scaled to 0 to 255"),
        (GREY.astype(np.uint16) * 16 + 300, "300 to 4380 (uint16), scaled to 0 to 255"),
        (GREY / 255 * 16, "0 to 16 (float64), scaled to 0 to 255"),
        (GREY.astype(float) + 1e-4, "0.0001 to 255 of 0 to 255"),
    ],
)  # fmt: skip
def test_pixels_of_any_type_and_range_become_bytes(given, used, tmp_path):
    np.save(tmp_path / "a.npy", given)
    assert_holds(dataset := loaded(tmp_path), GREY)
    assert dataset.details["range"] == used.replace("0 to 1,", f"0 to {given.max():g},", 1)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.float32])
def test_zeros_and_ones_become_black_and_white(kind, tmp_path):
    np.save(tmp_path / "a.npy", (GREY > 99).astype(kind))
    assert_holds(loaded(tmp_path), (GREY > 99) * np.uint8(255))


@pytest.mark.parametrize(
    ("labels", "expected", "names"),
    [
        (LABELS.astype(np.uint8), LABELS, ()), (LABELS[:, None], LABELS, ()), (LABELS.astype(float), LABELS, ()),
        (np.eye(3)[LABELS], LABELS, ()), (LABELS + 5, LABELS + 5, ()), (LABELS - 1, LABELS, ("-1", "0", "1")),
        (np.array(["bee", "cow", "dog"])[LABELS], LABELS, ("bee", "cow", "dog")),
        (np.array([b"bee", b"cow", b"dog"])[LABELS], LABELS, ("bee", "cow", "dog")),
        (np.tile(LABELS[:, None], 4), None, ()), (np.ones((20, 2)), None, ()), (LABELS + 0.5, None, ()),
        (np.array([{}] * 20), None, ()),
    ],
)  # fmt: skip
def test_labels_may_be_numbers_texts_or_one_hot_and_others_are_left_out_with_a_line(labels, expected, names, tmp_path):
    np.savez(tmp_path / "a.npz", x=GREY, y=labels)
    assert_holds(dataset := loaded(tmp_path), GREY, expected)
    assert dataset.label_names == names
    assert len(dataset.details.get("left_out", [])) == (expected is None)


def test_images_that_are_there_flat_and_as_pictures_are_taken_as_pictures(tmp_path):
    np.savez(tmp_path / "digits.npz", data=GREY.reshape(20, -1), images=GREY, target=LABELS)
    assert_holds(loaded(tmp_path), GREY, LABELS)


def test_names_of_labels_and_what_is_of_no_use(tmp_path):
    names = np.array(["ant", "bee", "cow"])
    np.savez(tmp_path / "a.npz", imgs=GREY, y=LABELS, class_names=names, boxes=np.zeros((20, 4)), weights=np.ones(20))
    dataset = loaded(tmp_path)
    assert dataset.label_names == ("ant", "bee", "cow")
    assert sorted(dataset.details["left_out"]) == ["a.npz: boxes: of unknown use", "a.npz: weights: of unknown use"]


NOT_A_NUMBER = np.where(np.arange(20)[:, None, None] == 7, np.nan, GREY)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"x": NOT_A_NUMBER}, "a.npz: x: image 7 has a pixel that is no finite number"),
        ({"x": np.full((20, 6, 8), np.inf)}, "image 0 has a pixel that is no finite number"),
        ({"x": GREY - 100.0}, "a.npz: x: pixels from -100 to 155 are not allowed; 0 to 1, -1 to 1, 0 to 255 and"),
        ({"x": GREY * 1e6}, "pixels from 0 to 2.55e+08 are not allowed"),
        ({"x": GREY * 1j}, "elements of type complex128; numbers are needed"),
        ({"x": GREY, "y": LABELS[:19]}, "a.npz: y has 19 labels of 20 images in a.npz: x; one each is needed"),
        ({"x_train": GREY, "x_test": SQUARE}, "images of different shapes: "),
        ({"x": GREY, "images": GREY}, "several arrays may be the images, a.npz: x, a.npz: images; set DATA_DIR to"),
        ({"x": np.array([[1], [1, 2]], object)}, "no array of images; there is a.npz: x: Python objects, which are"),
        ({"x": GREY[:0]}, "a.npz: x: no images, its shape is (0, 6, 8)"),
        ({"x": np.zeros((20, 37), np.uint8)}, "the shape (20, 37) is not allowed; (N, H, W),"),
        ({"x": np.zeros((20, 6, 6, 2), np.uint8)}, "the shape (20, 6, 6, 2)"),
        ({"y": LABELS}, "no array of images; there is a.npz: y (20,)"),
        ({"x": np.zeros((20, 6, 6), np.uint8)}, "images: 20, but no two differ"),
        ({}, "no array of images; there is nothing"),
    ],
)  # fmt: skip
def test_an_npz_that_cannot_be_used_is_one_line(content, told, tmp_path):
    np.savez(tmp_path / "a.npz", **content)
    assert told in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"1,2,3,4\n1,2,3\n", "line 2 has 3 columns, where 4 are needed"),
        ("a.csv", b"1,2,3,4\n1,2,3,4,5\n", "line 2 has 5 columns, where 4 are needed"),
        ("a.csv", b"1,2,3,4\n1,2,x,4\n", "could not convert string 'x' to float32 at row 1, column 3."),
        ("a.csv", b"1,2,3,4\n1,,3,4\n", "could not convert string '' to float32 at row 1, column 2."),
        ("a.csv", b"\xff\xfe1\x00,\x00", "not a text in UTF-8; save it as one"),
        ("a.csv", b"1,2,3\n", "3 columns of pixels make no square image, grey or of three colours"),
        ("a.csv", b"", "an empty file"),
        ("train-images-idx3-ubyte", idx(GREY)[:-1], "959 bytes of elements, but its first bytes announce 960"),
        ("a.npz", b"PK\x03\x04 half a file", "File is not a zip file"),
        ("a.npy", b"\x93NUMPY", "EOF"),
        (
            "a.npy",
            b"<html>",
            "not a file of arrays, by its content; one is needed (.npz, .npy, .csv or IDX, plain or .gz)",
        ),
        ("a.npz.gz", b"\x1f\x8b half", ""),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    line = refused(tmp_path / name)
    assert line.startswith(f"{tmp_path / name}: ")
    assert told in line


def test_idx_files_have_numbers_of_any_size(tmp_path):
    (tmp_path / "x.idx").write_bytes(idx(GREY.astype(">f4"), 13))
    assert_holds(loaded(tmp_path), GREY)


def test_emnists_files_are_turned_and_it_is_said(tmp_path):
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(GREY.transpose(0, 2, 1)))
    assert_holds(dataset := loaded(tmp_path), GREY)
    assert "because EMNIST's files have them swapped" in dataset.details["pixels"]
    assert dataset.details["sizes"] == "8 x 6"


def test_a_place_without_arrays_is_one_line_that_shows_what_is_there(tmp_path):
    told = f"no: no such file or folder; set DATA_DIR to a file ({arrays.READ}) or the folder of such files"
    assert refused(tmp_path / "no").endswith(told)
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    told = f"no file of image arrays ({arrays.READ}); there is cat.png; see DATA_DIR and DATASET"
    assert refused(tmp_path).endswith(told)


def test_copies_among_the_test_images_are_counted(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=GREY, x_test=GREY[3:5])
    loaded(tmp_path, said := [])
    assert said == ["note       2 of 2 test images are copies of training images"]


def test_arrays_are_prepared_and_refused_as_other_data_sets_are(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=SQUARE, y=np.array(["ant", "bee"])[LABELS % 2])
    chosen = {"dataset": "arrays", "data_dir": str(tmp_path / "a.npz"), "binarize": "none", "batch_size": 2}
    data.check_early(from_params(**chosen))
    monkeypatch.setattr(arrays, "FAST_BYTES", 0)  # so that all files are too large to be read twice
    data.check_early(from_params(**chosen | {"batch_size": 10**6}))
    monkeypatch.undo()
    dataset = data.prepare(from_params(**chosen, labels=("bee",), held_out=1), [].append)
    assert dataset.title == "a (bee only)"
    assert sum(map(sum, dataset.details["labels"].values())) == len(dataset.train_images) + 1
    for changes, told in (
        ({"architecture": "conv"}, "6 x 6 pixels, which it halves"),
        ({"batch_size": 19}, "at most 18"),
    ):
        with pytest.raises(SettingsError, match=told):
            data.check_early(from_params(**chosen | changes))
