"""utils/folders.py: the images of a folder, their labels and their split are found, whatever its layout."""

import os

import numpy as np
import pytest
from PIL import Image

from tests.drawn import draw, numbers_of
from utils import data, folders, old_split
from utils.dataset import TEST_BINARIZATION_KEY, BadImage, DataError, Known, binarize, draw_split
from utils.settings import SettingsError, from_params

SIZE = 8


def say(line):
    raise AssertionError(f"nothing to say, but: {line}")


def load_folder(folder, skip=False):
    return folders.folder(
        from_params(dataset="folder", data_dir=str(folder), image_size=SIZE, skip_bad_images=skip), say
    )


def test_a_folder_without_sub_folders_has_one_label_and_a_tenth_is_tested_on(tmp_path):
    for number in range(40):
        draw(
            tmp_path / f"{number:02}.{('jpg', 'PNG', 'webp', 'bmp', 'gif', 'tif', 'JPEG', 'tiff')[number % 8]}", number
        )
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    draw(tmp_path / ".cache" / "hidden.jpg", 50)
    (tmp_path / "notes.txt").write_text("")
    dataset = load_folder(tmp_path)
    train, test = numbers_of(dataset.train_images), numbers_of(dataset.test_images)
    assert (len(train), len(test)) == (36, 4)
    assert sorted(train + test) == list(range(40))
    assert test == sorted(test)
    assert train != sorted(train)
    assert numbers_of(load_folder(tmp_path).train_images) == train
    assert not dataset.train_labels.any()
    assert (dataset.title, dataset.source, dataset.verified) == (tmp_path.name, str(tmp_path), "")


def test_sub_folders_are_labels_and_a_tenth_of_each_is_tested_on(tmp_path):
    for number in range(50):
        draw(tmp_path / ("b.1" if number < 40 else "a") / f"{number % 3}" / f"{number:02}.png", number, "L")
    dataset = load_folder(tmp_path)
    assert dataset.train_images.image_shape == (SIZE, SIZE, 1)
    for images, labels in (
        (dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels),
    ):  # fmt: skip
        assert [int(number < 40) for number in numbers_of(images)] == labels.tolist()
    assert np.bincount(dataset.test_labels).tolist() == [1, 4]  # a tenth
    assert set(dataset.train_labels[-7:]) == {0, 1}  # what HELD_OUT would take


def test_train_and_test_are_the_split(tmp_path):
    for number in range(20):
        part = "test" if number % 3 == 0 else "train"
        draw(tmp_path / part / ("cats" if number < 10 else "dogs") / f"{number:02}.png", number)
    draw(tmp_path / "other" / "50.png", 50)
    dataset = load_folder(tmp_path)
    assert sorted(numbers_of(dataset.train_images)) == [number for number in range(20) if number % 3]
    assert numbers_of(dataset.test_images) == [0, 3, 6, 9, 12, 15, 18]
    assert dataset.test_labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert set(dataset.train_labels[-5:]) == {0, 1}  # what HELD_OUT would take
    assert (dataset.train_labels == (np.array(numbers_of(dataset.train_images)) >= 10)).all()


def test_runs_from_before_keep_their_split():
    labels = np.repeat([0, 1, 2], [150_000, 50_000, 20]).astype(np.int32)
    train, test = old_split.draw_split(labels)
    assert np.bincount(labels[test]).tolist() == [7_499, 2_499, 3]
    np.testing.assert_array_equal(np.sort(np.concatenate((train, test))), np.arange(len(labels)))


@pytest.mark.parametrize(("counts", "tested"), [
    ([2], 1), ([9], 1), ([1] * 60, 6), ([100, 3], 10), ([4] * 1_500, 600), ([150_000, 50_000], 10_000),
])  # fmt: skip
def test_a_tenth_is_tested_on_whatever_the_labels(counts, tested):
    labels = np.repeat(np.arange(len(counts)), counts)
    train, test = draw_split(labels, np.random.default_rng(1).integers(2**63, size=len(labels), dtype=np.uint64))
    np.testing.assert_array_equal(np.sort(np.concatenate((train, test))), np.arange(len(labels)))
    assert len(test) == tested
    shares = np.bincount(labels[test], minlength=len(counts)) - np.array(counts) * tested / sum(counts)
    assert (np.abs(shares) < 1).all()  # each label has its share, as closely as whole images allow


def test_copies_of_an_image_are_in_the_same_part():
    ids = np.random.default_rng(0).integers(40, size=400).astype(np.uint64)
    train, test = draw_split(np.zeros(400, int), ids)
    assert not set(ids[train]) & set(ids[test])
    assert len(set(ids[test])) == 4


def test_folders_with_too_few_images_are_told(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}: no images; set DATA_DIR to their folder$"):
        load_folder(tmp_path)
    for name in ("a.txt", "b.txt", "c.jpeg.part"):
        (tmp_path / name).write_text("words")
    (tmp_path / "d").write_bytes(b"PK\x03\x04 an archive")
    there = r"there is 3 x not an image \(e.g. a.txt\); 1 x a zip archive; unpack it \(e.g. d\)"
    with pytest.raises(DataError, match=f"^{tmp_path}: no images; {there}; set DATA_DIR to their folder$"):
        load_folder(tmp_path)
    draw(tmp_path / "1.png", 1)
    with pytest.raises(DataError, match=f"^{tmp_path}: images: 1, but no two differ; "):
        load_folder(tmp_path)


LAYOUTS = {  # by name: the pictures' folders, the labels to train and to test on, and the split that is reported
    "val is tested on": (["Train/a", "Train/b", "VAL/a", "VAL/b"], "ab", "ab", "the folders Train and VAL"),
    "test goes before val": (["training/a", "valid/a", "Testing/a"], "a", "a", "the folders training and Testing"),
    "a folder around": (["set/x/train/a", "set/x/dev/a"], "a", "a", "the folders train and dev"),
    "parts below classes": (["a/train", "a/test", "b/train", "b/test"], "ab", "ab", "the folders train and test"),
    "a word of the name": (
        ["TrainingSet/a", "TrainingSet/b", "test_images/a"],
        "ab",
        "a",
        "the folders TrainingSet and test_images",
    ),
    "twice": (
        ["seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/b"],
        "ab",
        "b",
        "the folders seg_train and seg_test",
    ),
    "a folder around the classes": (
        ["train/all/a", "train/all/b", "test/all/a"],
        "ab",
        "a",
        "the folders train and test",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_split_is_found_in_any_layout(tmp_path, layout):
    places, train, test, split = LAYOUTS[layout]
    for number, place in enumerate(places):
        draw(tmp_path / place / "1.png", number)
    dataset = load_folder(tmp_path)
    assert sorted(dataset.label_names[label] for label in dataset.train_labels) == list(train)
    assert sorted(dataset.label_names[label] for label in dataset.test_labels) == list(test)
    assert dataset.details["split"] == split
    for names in (dataset.train_names, dataset.test_names):
        assert all((tmp_path / name.decode()).is_file() for name in names)
    left_out = ["1 x validation image, as there are test images (e.g. valid/a/1.png)"] * (
        layout == "test goes before val"
    )
    assert dataset.details["left_out"] == left_out


def test_labels_whose_names_have_such_words_are_no_split():
    labels = [b"train station", b"test tube", b"car", b"dog"]
    parts, found, split = folders.by_folders([[label] for label in labels])
    assert (list(parts), list(found), split) == (["train"] * 4, labels, "")


def test_a_folder_around_the_classes_is_no_label(tmp_path):
    for number in range(20):
        draw(tmp_path / "download" / "animals" / ("cat", "dog")[number % 2] / f"{number:02}.png", number)
    (tmp_path / "__MACOSX").mkdir()
    assert load_folder(tmp_path).label_names == ("cat", "dog")


def test_copies_between_the_folders_of_a_split_are_counted(tmp_path):
    for place, number in (("train/1", 1), ("train/2", 2), ("test/3", 2), ("test/4", 4)):
        draw(tmp_path / f"{place}.png", number)
    split = load_folder(tmp_path).details["split"]
    assert split == "the folders train and test; 1 of the test images are copies of training images"


def test_links_are_followed_once(tmp_path):
    for number in range(10):
        draw(tmp_path / "store" / f"{number}.png", number)
        draw(tmp_path / "data" / "cat" / f"{number}.png", 10 + number)
    data_dir = tmp_path / "data"
    (data_dir / "dog").symlink_to("../store")
    (data_dir / "cat" / "up").symlink_to("..")
    (data_dir / "cat" / "again").symlink_to(tmp_path / "store")
    (data_dir / "cat" / "gone.png").symlink_to("nowhere")
    (data_dir / "cat" / "one.png").symlink_to("../../store/1.png")
    os.mkfifo(data_dir / "cat" / "pipe.png")
    dataset = load_folder(data_dir)
    assert len(dataset.train_images) + len(dataset.test_images) == 21
    assert sum(map(len, (dataset.train_names, dataset.test_names))) == 21
    assert sorted(dataset.details["left_out"]) == [
        "1 x a broken link (e.g. cat/gone.png)",
        "1 x not a file (e.g. cat/pipe.png)",
        "2 x a link to a folder that was looked at already (e.g. cat/up)",
    ]


def test_every_format_is_read_by_its_content_and_the_rest_is_counted(tmp_path):
    kinds = ("PPM", "AVIF", "JPEG2000", "TGA", "QOI", "ICO", "PCX", "WEBP", "GIF", "DDS")
    for number, kind in enumerate(kinds):
        ending = "tga" if kind == "TGA" else ("jpg", "dat", "")[number % 3]
        draw(tmp_path / f"{number}.{ending}", number, format=kind)
    for name, content in {
        "notes.txt": b"words", "a.csv": b"1,2", "code.h": b"#define X 1\n", "a.html": b"<html>", "b": b"",
        "clip.mov": b"\0\0\0\x14ftypqt  ", "photo.heic": b"\0\0\0\x18ftypheic", "c.eps": b"%!PS-Adobe-3.0 EPSF-3.0",
        "x.npy": b"\x93NUMPY", "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    dataset = load_folder(tmp_path)
    found = sorted(numbers_of(dataset.train_images) + numbers_of(dataset.test_images))
    assert found == list(range(len(kinds)))
    assert dataset.details["left_out"] == [
        "3 x not an image (e.g. a.csv)", "1 x an HTML page (e.g. a.html)", "1 x an empty file (e.g. b)",
        "1 x an EPS picture, to be converted to PNG (e.g. c.eps)", "1 x a movie (e.g. clip.mov)",
        "1 x a Git LFS pointer; git lfs pull fetches the picture (e.g. lfs)",
        "1 x a HEIC picture, to be converted to JPEG or PNG (e.g. photo.heic)",
        "1 x NumPy's data; DATASET = arrays reads it (e.g. x.npy)",
    ]  # fmt: skip


@pytest.mark.parametrize("cover", ["cover.png", "all/cover.png"])
def test_a_picture_beside_the_folders_hides_no_label_and_no_split(tmp_path, cover):
    for number in range(24):
        part, label = ("train", "val")[number % 2], ("cat", "dog")[number // 12]
        for layout, within in (("plain", [label]), ("split", [part, label]), ("below", [label, part])):
            draw((tmp_path / layout / "all").joinpath(*within, f"{number:02}.png"), number)
    for layout in ("plain", "split", "below"):
        draw(tmp_path / layout / cover, 40)
    plain = load_folder(tmp_path / "plain")
    assert plain.label_names == ("(no folder)", "cat", "dog")
    for layout in ("split", "below"):
        dataset = load_folder(tmp_path / layout)
        assert sorted(numbers_of(dataset.test_images)) == list(range(1, 24, 2))
        assert set(dataset.label_names) == {"cat", "dog"}
        assert dataset.details["left_out"] == [f"1 x image beside the folders of the split (e.g. {cover})"]


def test_a_link_in_one_label_takes_no_image_from_another(tmp_path):
    for number in range(20):
        draw(tmp_path / ("cat", "dog")[number % 2] / f"{number:02}.png", number)
    os.symlink("../dog", tmp_path / "cat" / "alike")
    dataset = load_folder(tmp_path)
    assert np.bincount(np.concatenate((dataset.train_labels, dataset.test_labels))).tolist() == [10, 10]
    assert dataset.details["left_out"] == ["1 x a link to a folder that was looked at already (e.g. cat/alike)"]


def test_names_that_are_no_plain_text_are_read_and_shown_in_one_line(tmp_path):
    for number, name in enumerate(
        (b"a[1]*?.png", b"\x1b[31m.png", b"two\nlines.png", b"\xff.png", "画像.png".encode())
    ):
        Image.new("L", (9, 9), 9 * number).save(os.fsencode(tmp_path) + b"/x" + name, "PNG")
    (tmp_path / "y\x1b[2J.txt").write_text("words")
    dataset = load_folder(tmp_path)
    assert len(dataset.train_images[:]) + len(dataset.test_images[:]) == 5
    assert dataset.details["left_out"] == ["1 x not an image (e.g. 'y\\x1b[2J.txt')"]


def test_one_colour_picture_makes_all_colour_and_the_header_says_so(tmp_path):
    for number in range(12):
        draw(tmp_path / f"{number:02}.png", number, "RGB" if number == 7 else "L")
    dataset = load_folder(tmp_path)
    assert dataset.train_images.image_shape == (SIZE, SIZE, 3)
    assert dataset.details["pixels"] == "colour; 11 of 12 are grey and are converted"


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
@pytest.mark.parametrize(
    ("largest", "white"), [(200, 255), (900, 1_023), (4_080, 4_095), (9_000, 16_383), (60_000, 65_535)]
)
def test_16_bit_pixels_are_scaled_by_the_range_that_they_use(tmp_path, largest, white, suffix):
    for number in range(12):
        pixels = np.full((9, 9), largest if number == 3 else largest // 2, np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.{suffix}")
    dataset = load_folder(tmp_path)
    assert dataset.details["pixels"] == "grey"
    brightest = max(dataset.train_images[:].max(), dataset.test_images[:].max())
    assert brightest == pytest.approx(255 * largest / white, abs=1)
    assert f"{white:,} is white (the largest found is {largest:,})" in dataset.details["range"]


@pytest.mark.parametrize(
    ("largest", "warned"), [(4_095, "dark: 16-bit colours, the largest 16 of 255"), (65_535, None)]
)
def test_16_bit_colours_that_come_out_dark_are_reported(tmp_path, largest, warned):
    for number in range(4):
        pixels = np.full((9, 9, 3), largest - number, ">u2")
        (tmp_path / f"{number}.ppm").write_bytes(b"P6 9 9 65535\n" + pixels.tobytes())
    words = load_folder(tmp_path).details.get("range")
    assert words == warned if warned is None else words.startswith(warned)


@pytest.mark.parametrize(
    ("fit", "shape", "kept"), [("crop", (16, 16), 32 * 32), ("pad", (16, 16), 0), ("keep", (4, 16), 0)]
)
def test_pictures_that_are_not_square_are_cropped_padded_or_kept(tmp_path, fit, shape, kept):
    for number in range(12):
        pixels = np.full((32, 128, 3), 100 + number, np.uint8)
        pixels[:, :32] = 255  # the left end
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    chosen = {"dataset": "folder", "data_dir": str(tmp_path), "image_size": 16, "image_fit": fit}
    dataset = folders.folder(from_params(**chosen), say)
    image = dataset.train_images[:1][0]
    assert image.shape == (*shape, 3)
    assert (image == 255).any() == (fit != "crop")  # only a crop loses the ends
    assert (image == 0).any() == (fit == "pad")
    assert ("cuts off 75 percent of a picture" in dataset.details["fit"]) == (fit == "crop")


def test_what_a_run_has_had_is_taken_whatever_else_is_there_by_now(tmp_path):
    for number in range(30):
        draw(tmp_path / "cat" / f"{number:02}.png", number, "L")
    before = load_folder(tmp_path)
    known = Known(
        before.train_names, before.test_names, before.train_labels, before.test_labels, before.train_images.numbers,
        before.test_images.numbers, before.label_names, before.train_images.image_shape, before.details["white"],
    )  # fmt: skip
    for number in range(20):
        draw(tmp_path / "ant" / f"{number:02}.png", 31 + number, "RGB")
    chosen = {"dataset": "folder", "data_dir": str(tmp_path), "image_size": SIZE}
    after = folders.folder(from_params(**chosen), say, known)
    assert after.label_names == ("cat",)
    np.testing.assert_array_equal(after.train_images[:], before.train_images[:])
    np.testing.assert_array_equal(after.test_images[:], before.test_images[:])
    np.testing.assert_array_equal(after.train_ids, before.train_ids)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_folder_that_is_none_is_told(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"^{tmp_path}/{name}: no such folder; set DATA_DIR to the folder of images$"):
        load_folder(tmp_path / name)


def test_a_first_image_that_is_bad_is_told_or_passed_over(tmp_path):
    for number in range(1, 12):
        draw(tmp_path / f"{number:02}.png", number, "L")
    (tmp_path / "00.png").write_bytes(b"")
    dataset = load_folder(tmp_path)
    with pytest.raises(BadImage, match=f"^{tmp_path}/00.png: an empty file$"):
        dataset.train_images[:], dataset.test_images[:]
    dataset = load_folder(tmp_path, skip=True)
    assert dataset.train_images.image_shape == (SIZE, SIZE, 1)
    dataset.train_images[:], dataset.test_images[:]
    assert dataset.train_images.skipped == {f"{tmp_path}/00.png: an empty file"}


def test_a_folder_is_prepared_like_mnist(tmp_path):
    for number in range(48):
        draw(tmp_path / ("a", "b", "c")[number % 3] / f"{number:02}.png", number, "L")
    chosen = {"dataset": "folder", "data_dir": str(tmp_path), "image_size": SIZE, "batch_size": 4, "binarize": "none"}
    dataset = data.prepare(from_params(**chosen | {"labels": (0, 2), "held_out": 12}), say)
    assert dataset.title == f"{tmp_path.name} (a, c only)"
    assert {number % 3 for number in numbers_of(dataset.train_images)} == {0, 2}
    assert [number % 3 for number in numbers_of(dataset.test_images)] == dataset.test_labels.tolist()
    assert (len(dataset.train_images), len(dataset.test_images)) == (
        16,
        12,
    )  # of 32 images: 12 are held out, 4 are in the tested tenth

    plain, drawn = (data.prepare(from_params(**chosen | {"binarize": how}), say) for how in ("none", "dynamic"))
    number = int(drawn.test_images.numbers[1])
    expected = binarize(plain.test_images[1], (*TEST_BINARIZATION_KEY, number))
    np.testing.assert_array_equal(drawn.test_images[1], expected)
    np.testing.assert_array_equal(drawn.train_images[:], plain.train_images[:])  # these are drawn in each epoch
    with pytest.raises(SettingsError, match=r"^labels: 3 is not allowed; .* has a, b, c$"):
        data.prepare(from_params(**chosen | {"labels": (3,)}), say)


def test_images_to_train_on_are_numbered_first_because_random_draws_have_these_keys(tmp_path):
    for part in ("test", "train"):
        for number in range(6):
            draw(tmp_path / part / ("dog", "cat")[number % 2] / f"{number}.png", number + 6 * (part == "test"), "L")
    dataset = load_folder(tmp_path)
    assert sorted(dataset.train_images.numbers) == list(range(6))
    assert dataset.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test_images.numbers.tolist() == list(range(6, 12))
