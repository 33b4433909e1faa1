"""utils/folders.py: image files of every kind become the right pixels, or one line that names the file."""

import hashlib
import io
import os
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from utils import data, folders
from utils.dataset import TEST_BINARIZATION_KEY, BadImage, DataError, binarize
from utils.settings import SettingsError, from_params

ATTRIBUTES = ("Smiling", "Blond_Hair", "Eyeglasses")
SIZE = 8


def say(line):
    raise AssertionError(f"nothing to say, but: {line}")


def shade(number):
    """A level of grey that tells the images of a test apart, also after JPEG's losses."""
    return 5 * number


def draw(path, number, mode="RGB", size=(20, 24), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade(number)).convert(mode).save(path, **options)


def numbers_of(images):
    """Which images these are, by their shades."""
    return np.rint(images[:].mean(axis=(1, 2, 3)) / 5).astype(int).tolist()


# --- one image --------------------------------------------------------------------------------------------------------
def test_an_image_is_cropped_in_the_middle_and_shrunk_by_averaging(tmp_path):
    across, down = np.meshgrid(np.arange(178), np.arange(218))
    gradient = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    Image.fromarray(gradient).save(path := tmp_path / "gradient.png")
    image = folders.read_image(path, 64, 148, 3)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
    centre = (np.arange(64) + 0.5) * 148 / 64 - 0.5  # of each pixel, in pixels of the crop, which starts at (15, 35)
    inner = slice(2, -2)  # at the edges there is nothing to average with on one side
    np.testing.assert_allclose(image[:, inner, 0], np.tile(15 + centre[inner], (64, 1)), atol=0.51)
    np.testing.assert_allclose(image[inner, :, 1], np.tile(35 + centre[inner, None], (1, 64)), atol=0.51)
    np.testing.assert_allclose(image[:, inner, 2], np.tile(240 - centre[inner], (64, 1)), atol=0.51)

    board = 255 * (np.indices((40, 40)).sum(axis=0) % 2).astype(np.uint8)  # without averaging: all black or all white
    Image.fromarray(board).save(path)
    np.testing.assert_allclose(folders.read_image(path, 10, 0, 1)[1:-1, 1:-1], 127.5, atol=1)


@pytest.mark.parametrize(("crop", "left", "top", "side"), [(0, 0, 2, 20), (99, 0, 2, 20), (8, 6, 8, 8), (1, 9, 11, 1)])
def test_a_crop_that_is_not_resized_keeps_its_pixels(tmp_path, crop, left, top, side):
    pixels = np.random.default_rng(1).integers(256, size=(24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    image = folders.read_image(tmp_path / "noise.png", side, crop, 3)
    np.testing.assert_array_equal(image, pixels[top : top + side, left : left + side])


def test_images_stand_upright(tmp_path):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :, 0] = 255  # red above
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(folders.read_image(tmp_path / "turned.png", 16, 0, 3), upright)


RED = (255, 0, 0)
PICTURES = {  # what is saved, the RGB pixel and the grey one that are read
    "rgb": (lambda: Image.new("RGB", (9, 9), RED), RED, 76),
    "grey": (lambda: Image.new("L", (9, 9), 40), (40, 40, 40), 40),
    "black and white": (lambda: Image.new("1", (9, 9), 1), (255, 255, 255), 255),
    "palette": (lambda: Image.new("RGB", (9, 9), RED).quantize(4), RED, 76),
    "half transparent": (lambda: Image.new("RGBA", (9, 9), (255, 0, 0, 128)), (255, 127, 127), 165),
    "grey and transparent": (lambda: Image.new("LA", (9, 9), (40, 0)), (255, 255, 255), 255),
    "16 bits": (lambda: Image.fromarray(np.full((9, 9), 40 * 256 + 99, np.uint16)), (40, 40, 40), 40),
    "cmyk": (lambda: Image.new("CMYK", (9, 9), (0, 255, 255, 0)), RED, 76),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_pixel_becomes_8_bits(tmp_path, kind):
    make, rgb, grey = PICTURES[kind]
    make().save(path := tmp_path / "image", format="TIFF" if kind == "cmyk" else "PNG")
    np.testing.assert_allclose(folders.read_image(path, 4, 0, 3), np.full((4, 4, 3), rgb), atol=1)
    np.testing.assert_allclose(folders.read_image(path, 4, 0, 1), np.full((4, 4, 1), grey), atol=1)


def test_the_content_tells_the_format_and_not_the_name(tmp_path):
    draw(tmp_path / "number.jpg", 7, format="PNG")
    assert np.unique(folders.read_image(tmp_path / "number.jpg", 8, 0, 3)).tolist() == [35]


def jpeg() -> bytes:
    noise = np.random.default_rng(1).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


def tiff_of_floats() -> bytes:
    Image.new("F", (9, 9)).save(file := io.BytesIO(), "TIFF")
    return file.getvalue()


BROKEN = {
    "truncated": (jpeg()[:2_000], r"image file is truncated \(\d+ bytes not processed\)"),
    "text": (b"not found", "not an image"),
    "a web page": (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "an HTML page"),
    "empty": (b"", "an empty file"),
    "floats": (tiff_of_floats(), "pixels of 32 bits, of which nothing says what is white"),
    "another format": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_told_by_file_and_reason(tmp_path, kind):
    content, why = BROKEN[kind]
    path = tmp_path / "000001.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=f"^{path}: {why}$"):
        folders.read_image(path, 8, 0, 3)


def test_missing_folders_and_bombs_are_told_too(tmp_path, monkeypatch):
    with pytest.raises(BadImage, match=f"^{tmp_path}/no.jpg: No such file or directory$"):
        folders.read_image(tmp_path / "no.jpg", 8, 0, 3)
    with pytest.raises(BadImage, match=f"^{tmp_path}: Is a directory$"):
        folders.read_image(tmp_path, 8, 0, 3)
    draw(tmp_path / "large.png", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(BadImage, match=f"^{tmp_path}/large.png: more than 400 pixels$"):
        folders.read_image(tmp_path / "large.png", 8, 0, 3)


def test_a_name_that_is_no_text_can_be_told(tmp_path):
    with pytest.raises(BadImage, match=r"/�\.jpg: No such file or directory$"):
        folders.read_image(os.fsencode(tmp_path) + b"/\xff.jpg", 8, 0, 3)


# --- CelebA -----------------------------------------------------------------------------------------------------------
PARTS = [(0, 1, 2, 0, 0, 2)[number % 6] for number in range(1, 31)]
HAS = np.random.default_rng(3).random((30, 3)) < 0.5


def in_part(part):
    return [number for number in range(1, 31) if PARTS[number - 1] == part]


def write_lists(folder):
    names = [f"{number:06}.jpg" for number in range(1, 31)]
    parts = "".join(f"{name} {part}\n" for name, part in zip(names, PARTS, strict=True))
    rows = ("  ".join("1" if one else "-1" for one in row) for row in HAS)
    attributes = "".join(f"{name} {row}\n" for name, row in zip(names, rows, strict=True))
    (folder / "list_eval_partition.txt").write_text(parts)
    (folder / "list_attr_celeba.txt").write_text(f"30\n{' '.join(ATTRIBUTES)} \n{attributes}")


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A set in CelebA's layout, 30 images of 20 x 24; its lists pass for the published ones."""
    for number in range(1, 31):
        draw(tmp_path / "img_align_celeba" / f"{number:06}.jpg", number)
    write_lists(tmp_path)
    publish(tmp_path, monkeypatch)
    return tmp_path


def publish(folder, monkeypatch):
    for path in folder.glob("*.*"):
        monkeypatch.setitem(folders.CELEBA_MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())


def load_celeba(folder, crop=0, skip=False, say=say):
    return folders.celeba(str(folder), SIZE, crop, skip, say)


def test_celeba_has_its_official_parts_and_attributes(faces):
    dataset = load_celeba(faces)
    assert (dataset.title, dataset.source) == ("CelebA", str(faces))
    assert (dataset.verified, dataset.attributes) == ("lists verified by MD5", ATTRIBUTES)
    assert numbers_of(dataset.train_images) == in_part(0)
    assert numbers_of(dataset.test_images) == in_part(2)
    assert dataset.train_images.shape == (len(in_part(0)), SIZE, SIZE, 3)
    np.testing.assert_array_equal(dataset.train_attributes, HAS[np.array(in_part(0)) - 1], strict=True)
    np.testing.assert_array_equal(dataset.test_attributes, HAS[np.array(in_part(2)) - 1], strict=True)
    assert not dataset.train_labels.any()
    assert len(dataset.test_labels) == len(in_part(2))


def test_celeba_is_cropped_to_148_unless_told(faces, monkeypatch):
    crops = []
    monkeypatch.setattr(folders, "read_image", lambda path, size, crop, channels: crops.append((path, size, crop)))
    for crop in (0, 12):
        load_celeba(faces, crop).train_images.read(4)
    path = os.fsencode(faces / "img_align_celeba" / "000005.jpg")
    assert crops == [(path, SIZE, 148), (path, SIZE, 12)]


def test_celeba_is_found_in_its_own_folder_and_in_a_nested_one(faces):
    (faces / "celeba" / "img_align_celeba").mkdir(parents=True)
    for path in faces.glob("list_*"):
        path.rename(faces / "celeba" / path.name)
    (faces / "img_align_celeba").rename(faces / "celeba" / "img_align_celeba" / "img_align_celeba")
    dataset = load_celeba(faces)
    assert dataset.source == str(faces / "celeba")
    assert numbers_of(dataset.test_images) == in_part(2)


def test_a_set_in_celebas_layout_is_welcome_but_not_called_verified(faces, monkeypatch):
    monkeypatch.setitem(folders.CELEBA_MD5, "list_attr_celeba.txt", "another")
    said = []
    dataset = load_celeba(faces, say=said.append)
    assert said == ["note       list_attr_celeba.txt is not CelebA's own (MD5)"]
    assert dataset.verified == ""
    assert dataset.attributes == ATTRIBUTES


def edit(path, line, new):
    """Replace a line, counted from 1; None removes it."""
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1 : line] = [] if new is None else [new + "\n"]
    path.write_text("".join(lines))


PARTITION, ATTRIBUTE = "list_eval_partition.txt", "list_attr_celeba.txt"


@pytest.mark.parametrize(("name", "line", "new", "told"), [
    (PARTITION, 7, "000007.jpg 3", ", line 7: '000007.jpg 3' is not a name and 1 of 0, 1, 2"),
    (PARTITION, 7, "000007.jpg", ", line 7: '000007.jpg' is not a name and 1 of 0, 1, 2"),
    (PARTITION, 1, "<html>Quota exceeded</html>",
     ": an HTML page and no list; a download over quota leaves one; fetch it again"),
    (ATTRIBUTE, 1, "31", ", line 1: 31 images are announced, but 30 are listed"),
    (ATTRIBUTE, 1, "images", ", line 1: 'images' is not the number of images"),
    (ATTRIBUTE, 2, "Smiling Blond_Hair", ", line 3: {third!r} is not a name and 2 of -1, 1"),
    (ATTRIBUTE, 9, "000007.jpg 1 -1 0", ", line 9: '000007.jpg 1 -1 0' is not a name and 3 of -1, 1"),
    (ATTRIBUTE, 9, "000070.jpg 1 -1 1", f", line 9: 000070.jpg, where {PARTITION} has 000007.jpg"),
    (PARTITION, 30, None, None),
])  # fmt: skip
def test_lists_that_are_wrong_are_told_by_file_and_line(faces, name, line, new, told):
    third = (faces / ATTRIBUTE).read_text().splitlines()[2]
    edit(faces / name, line, new)
    told = f"{faces / name}{told.format(third=third)}" if told else (
        f"{faces / ATTRIBUTE}: 30 images, but {PARTITION} has 29")  # fmt: skip
    with pytest.raises(DataError) as caught:
        load_celeba(faces)
    assert str(caught.value) == told


@pytest.mark.parametrize("name", [PARTITION, ATTRIBUTE])
def test_a_missing_or_empty_list_is_told(faces, name):
    content = (faces / name).read_bytes()
    (faces / name).unlink()
    told = f"{faces / name}: No such file or directory; set DATA_DIR to the folder that holds CelebA"
    with pytest.raises(DataError) as caught:
        load_celeba(faces)
    assert str(caught.value) == told
    (faces / name).write_bytes(b"" if name == PARTITION else b"".join(content.splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match=f"^{faces / name}: it lists no images$"):
        load_celeba(faces)


def test_too_few_test_images_are_told(faces):
    lines = [f"{number:06}.jpg {2 if number in (3, 9) else 0}\n" for number in range(1, 31)]
    (faces / PARTITION).write_text("".join(lines))
    counts = r"28 images to train on \(0\) and 2 to test on \(2\); at least 1 and 3 are needed"
    with pytest.raises(DataError, match=f"^{faces / PARTITION}: {counts}$"):
        load_celeba(faces, say=lambda line: None)


def test_missing_images_are_told_though_validation_may_lack(faces):
    for number in in_part(1):
        (faces / "img_align_celeba" / f"{number:06}.jpg").unlink()
    load_celeba(faces)
    for number in (9, 5):  # of train and of test
        (faces / "img_align_celeba" / f"{number:06}.jpg").unlink()
    which = f"2 of the images that {PARTITION} lists are missing; the first is 000005.jpg"
    with pytest.raises(DataError, match=f"^{faces}/img_align_celeba: {which}$"):
        load_celeba(faces)


def test_bad_images_of_celeba_are_told_or_replaced_and_counted(faces):
    (faces / "img_align_celeba" / "000004.jpg").write_bytes(b"")
    with pytest.raises(BadImage, match=f"^{faces}/img_align_celeba/000004.jpg: an empty file$"):
        load_celeba(faces).train_images[:]
    dataset = load_celeba(faces, skip=True)
    assert numbers_of(dataset.train_images)[:4] == [3, 6, 6, 9]
    assert dataset.test_images.skipped == {f"{faces}/img_align_celeba/000004.jpg: an empty file"}


def zipped(faces, monkeypatch):
    """Put the images into the zip, and only there; its MD5 passes for the published one."""
    archive = faces / "img_align_celeba.zip"
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("img_align_celeba/", "")
        members.writestr("__MACOSX/img_align_celeba/._000001.jpg", "")
        members.writestr("../../outside.jpg", "")
        for path in sorted((faces / "img_align_celeba").iterdir()):
            members.write(path, f"img_align_celeba/{path.name}")
            path.unlink()
    (faces / "img_align_celeba").rmdir()
    publish(faces, monkeypatch)
    return archive


def test_the_zip_is_unpacked_once_and_nothing_outside_its_folder(faces, monkeypatch):
    archive = zipped(faces, monkeypatch)
    assert numbers_of(load_celeba(faces).test_images) == in_part(2)
    assert len(list((faces / "img_align_celeba").iterdir())) == 31  # with the one that was to lie outside
    assert not [above for above in (faces, *faces.parents) if (above / "outside.jpg").exists()]
    archive.write_bytes(b"no longer looked at")
    assert numbers_of(load_celeba(faces).train_images) == in_part(0)


@pytest.mark.parametrize(("content", "why"), [
    (b"<!DOCTYPE html><html>Quota</html>",
     "an HTML page and no zip; a download over quota leaves one; fetch it again"),
    (b"PK\x03\x04 half of it",
     "not the published file (MD5), but incomplete (15 bytes) or another; fetch it again"),
])  # fmt: skip
def test_a_zip_that_is_not_the_published_one_is_not_unpacked(faces, monkeypatch, content, why):
    zipped(faces, monkeypatch).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_celeba(faces)
    assert str(caught.value) == f"{faces}/img_align_celeba.zip: {why}"
    assert not (faces / "img_align_celeba").exists()


@pytest.mark.parametrize(("failure", "raised"), [
    (OSError(28, "No space left on device"), DataError), (KeyboardInterrupt(), KeyboardInterrupt),
])  # fmt: skip
def test_an_interrupted_unpacking_leaves_nothing(faces, monkeypatch, failure, raised):
    def stop_at_tenth(source, target):
        copied.append(target.write(source.read()))
        if len(copied) == 10:
            raise failure

    archive, copied = zipped(faces, monkeypatch), []
    monkeypatch.setattr(folders.shutil, "copyfileobj", stop_at_tenth)
    told = f"^{archive}: cannot be unpacked, No space left on device$" if raised is DataError else "^$"
    with pytest.raises(raised, match=told):
        load_celeba(faces)
    assert sorted(path.name for path in faces.iterdir()) == ["img_align_celeba.zip", ATTRIBUTE, PARTITION]


def test_neither_images_nor_zip_is_told(faces, monkeypatch):
    zipped(faces, monkeypatch).unlink()
    told = "neither img_align_celeba nor img_align_celeba.zip is there; set DATA_DIR to the folder that holds CelebA"
    with pytest.raises(DataError, match=f"^{faces}: {told}$"):
        load_celeba(faces)


# --- a folder of images -----------------------------------------------------------------------------------------------
def load_folder(folder, skip=False):
    return folders.folder(str(folder), SIZE, 0, skip, say)


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


def test_sub_folders_are_labels_of_which_each_is_tested_on(tmp_path):
    for number in range(50):
        draw(tmp_path / ("b.1" if number < 40 else "a") / f"{number % 3}" / f"{number:02}.png", number, "L")
    dataset = load_folder(tmp_path)
    assert dataset.train_images.image_shape == (SIZE, SIZE, 1)
    for images, labels in (
        (dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels),
    ):  # fmt: skip
        assert [int(number < 40) for number in numbers_of(images)] == labels.tolist()
    assert np.bincount(dataset.test_labels).tolist() == [3, 4]  # a tenth, but three
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
    assert (dataset.train_labels == (np.array(numbers_of(dataset.train_images)) >= 10)).all()


def test_no_more_than_10_000_are_tested_on_and_no_label_is_left_out():
    labels = np.repeat([0, 1, 2], [150_000, 50_000, 20]).astype(np.int32)
    train, test = folders.draw_split(labels)
    assert np.bincount(labels[test]).tolist() == [7_499, 2_499, 3]
    np.testing.assert_array_equal(np.sort(np.concatenate((train, test))), np.arange(len(labels)))


NO_IMAGES = "no images (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff); set DATA_DIR to their folder"


@pytest.mark.parametrize(("paths", "told"), [
    ([], f": {NO_IMAGES}"),
    (["train/1.png"], f"/test: {NO_IMAGES}"),
    (["1.png", "2.png"], ": too few images, 2; at least 4 are needed"),
    ([f"{label}/{number}.png" for label, count in (("a", 4), ("b", 3)) for number in range(count)],
     "/b: too few images, 3; at least 4 are needed"),
    ([f"{part}/a/{number}.png" for part, count in (("train", 9), ("test", 2)) for number in range(count)],
     "/test/a: too few images, 2; at least 3 are needed"),
])  # fmt: skip
def test_folders_with_too_few_images_are_told(tmp_path, paths, told):
    for path in paths:
        draw(tmp_path / path, 1)
    if paths == ["train/1.png"]:
        (tmp_path / "test").mkdir()
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path)
    why = ", as 3 of each label are test images that are shown" if "too few" in told else ""
    assert str(caught.value) == f"{tmp_path}{told}{why}"


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_folder_that_is_none_is_told(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"^{tmp_path}/{name}: no such folder; set DATA_DIR to the folder of images$"):
        load_folder(tmp_path / name)


def test_a_first_image_that_is_bad_is_told_or_passed_over(tmp_path):
    for number in range(1, 12):
        draw(tmp_path / f"{number:02}.png", number, "L")
    (tmp_path / "00.png").write_bytes(b"")
    with pytest.raises(BadImage, match=f"^{tmp_path}/00.png: an empty file$"):
        load_folder(tmp_path)
    dataset = load_folder(tmp_path, skip=True)
    assert dataset.train_images.image_shape == (SIZE, SIZE, 1)
    dataset.train_images[:], dataset.test_images[:]
    assert dataset.train_images.skipped == {f"{tmp_path}/00.png: an empty file"}


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------
def stand_in(monkeypatch, features, splits, failure=None):
    """A tensorflow_datasets with one set, whose splits are lists of examples."""

    def builder(name, data_dir, file_format):
        assert (name, file_format) == ("toys", "array_record")
        return types.SimpleNamespace(
            download_and_prepare=download, info=types.SimpleNamespace(splits=splits, features=features),
            as_data_source=lambda split, decoders: splits[split],
        )  # fmt: skip

    def download():
        if failure:
            raise failure

    library = types.ModuleType("tensorflow_datasets")
    library.builder, library.decode = builder, types.SimpleNamespace(SkipDecoding=object)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)


def feature(shape, dtype):
    return types.SimpleNamespace(shape=shape, np_dtype=dtype)


def examples(first, count):
    def png(number):
        Image.new("L", (9, 9), shade(number)).save(file := io.BytesIO(), "PNG")
        return file.getvalue()

    return [{"image": png(number), "label": number % 2} for number in range(first, first + count)]


FEATURES = {"image": feature((None, None, 1), np.uint8), "label": feature((), np.int64)}


def load_tfds(skip=False):
    return folders.tfds("toys", "anywhere", SIZE, 0, skip, say)


@pytest.mark.parametrize("tested", ["test", "validation"])
def test_tensorflow_datasets_are_read_by_their_splits(monkeypatch, tested):
    splits = {"train": examples(0, 10), "validation": examples(30, 5), tested: examples(20, 6)}
    stand_in(monkeypatch, FEATURES, splits)
    dataset = load_tfds()
    assert (dataset.title, dataset.source) == ("tfds:toys", "anywhere")
    assert dataset.train_images.shape == (10, SIZE, SIZE, 1)
    assert numbers_of(dataset.train_images) == list(range(10))
    assert numbers_of(dataset.test_images) == list(range(20, 26))
    assert dataset.train_labels.tolist() == [0, 1] * 5
    assert dataset.test_labels.tolist() == [0, 1] * 3


def test_a_tenth_of_train_is_tested_on_where_there_is_no_other_split(monkeypatch):
    stand_in(monkeypatch, FEATURES, {"train": examples(0, 50)})
    dataset = load_tfds()
    assert sorted(numbers_of(dataset.train_images) + numbers_of(dataset.test_images)) == list(range(50))
    assert sorted(np.bincount(dataset.test_labels)) == [2, 3]
    assert dataset.details["split"] == "a tenth of its split train, drawn by a fixed key"
    stand_in(monkeypatch, {"image": FEATURES["image"]}, {"train": examples(0, 50)})
    assert np.bincount(load_tfds().test_labels).tolist() == [5]
    stand_in(monkeypatch, FEATURES, {"train": examples(0, 2)})
    assert (len(load_tfds().train_images), len(load_tfds().test_images)) == (1, 1)


def test_tensorflow_datasets_have_names_of_labels_and_ids_by_split_and_number(monkeypatch):
    label = types.SimpleNamespace(shape=(), np_dtype=np.int64, names=["ant", "bee"])
    stand_in(monkeypatch, FEATURES | {"label": label}, {"train": examples(0, 10), "test": examples(0, 10)})
    dataset, again = load_tfds(), load_tfds()
    assert dataset.label_names == ("ant", "bee")
    assert len({*dataset.train_ids, *dataset.test_ids}) == 20
    assert dataset.train_ids.tolist() == again.train_ids.tolist()
    assert dataset.details == {"pixels": "grey", "split": "its splits train and test"}


def test_bad_images_of_tensorflow_datasets_are_told_or_replaced(monkeypatch):
    splits = {"train": examples(0, 10), "test": examples(20, 6)}
    splits["train"][4]["image"] = b""
    stand_in(monkeypatch, FEATURES, splits)
    with pytest.raises(BadImage, match=r"^tfds:toys, image 4 of train: an empty file$"):
        load_tfds().train_images[:]
    dataset = load_tfds(skip=True)
    assert numbers_of(dataset.train_images) == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9]
    assert dataset.test_images.skipped == {"tfds:toys, image 4 of train: an empty file"}


FAILED = "Failed to construct dataset \"toys\", builder_kwargs \"{'version': '9'}\": Version 9 not found.\nOthers"


@pytest.mark.parametrize(("features", "failure", "told"), [
    ({"text": None}, None, ": it has no feature called image that is an image of 8 bits; choose another set"),
    ({"image": feature((9, 9, 1), np.uint16)}, None,
     ": it has no feature called image that is an image of 8 bits; choose another set"),
    (FEATURES, ValueError("Dataset toys not found.\nAvailable: a thousand"), ": Dataset toys not found."),
    (FEATURES, AssertionError(FAILED), ": Version 9 not found."),
    (FEATURES, ConnectionError(), ": ConnectionError"),
    (FEATURES, ModuleNotFoundError("No module", name="array_record"),
     " needs array_record: pip install tensorflow-datasets array-record"),
    (FEATURES, ModuleNotFoundError("No module", name="etils.epath"), " needs etils: pip install etils"),
    (FEATURES, ValueError("File format is already set to TFRECORD"),
     ": anywhere has it in a format without random access; set DATA_DIR to another folder"),
])  # fmt: skip
def test_sets_that_cannot_be_had_are_told_in_one_line(monkeypatch, features, failure, told):
    stand_in(monkeypatch, features, {"train": examples(0, 5), "test": examples(0, 5)}, failure)
    with pytest.raises(DataError) as caught:
        load_tfds()
    assert str(caught.value) == f"tfds:toys{told}"


def test_a_missing_library_is_told_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    told = "^tfds:toys needs tensorflow_datasets: pip install tensorflow-datasets array-record$"
    with pytest.raises(DataError, match=told):
        load_tfds()


# --- prepared for a run -----------------------------------------------------------------------------------------------
def test_a_folder_is_prepared_like_mnist(tmp_path):
    for number in range(48):
        draw(tmp_path / ("a", "b", "c")[number % 3] / f"{number:02}.png", number, "L")
    chosen = {"dataset": "folder", "data_dir": str(tmp_path), "image_size": SIZE, "batch_size": 4, "binarize": "none"}
    dataset = data.prepare(from_params(**chosen | {"labels": (0, 2), "held_out": 12}), say)
    assert dataset.title == f"{tmp_path.name} (0, 2 only)"
    assert {number % 3 for number in numbers_of(dataset.train_images)} == {0, 2}
    assert [number % 3 for number in numbers_of(dataset.test_images)] == dataset.test_labels.tolist()
    assert (len(dataset.train_images), len(dataset.test_images)) == (32 - 6 - 12, 12)

    plain, drawn = (data.prepare(from_params(**chosen | {"binarize": how}), say) for how in ("none", "dynamic"))
    number = int(drawn.test_images.numbers[1])
    expected = binarize(plain.test_images[1], (*TEST_BINARIZATION_KEY, number))
    np.testing.assert_array_equal(drawn.test_images[1], expected)
    np.testing.assert_array_equal(drawn.train_images[:], plain.train_images[:])  # these are drawn epoch by epoch
    with pytest.raises(SettingsError, match=r"^labels: 3 is not allowed; .* has 0 to 2$"):
        data.prepare(from_params(**chosen | {"labels": (3,)}), say)


def test_celeba_is_prepared_with_its_attributes(faces):
    chosen = {"dataset": "celeba", "data_dir": str(faces), "image_size": SIZE, "batch_size": 4}
    dataset = data.prepare(from_params(**chosen, held_out=4), say)
    train = np.array(in_part(0)) - 1
    np.testing.assert_array_equal(dataset.train_attributes, HAS[train[:-4]])
    np.testing.assert_array_equal(dataset.test_attributes, HAS[train[-4:]])
    with pytest.raises(SettingsError, match=r"^labels: 1 is not allowed; CelebA has 0 to 0$"):
        data.prepare(from_params(**chosen, labels=(1,)), say)
