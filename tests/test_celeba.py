"""utils/celeba.py: CelebA as its authors, Kaggle and others store it, or one line that says what is wrong."""

import hashlib
import os
import zipfile

import numpy as np
import pytest

from tests.drawn import draw, numbers_of
from utils import celeba, data, images
from utils.dataset import BadImage, DataError
from utils.settings import SettingsError, from_params

ATTRIBUTES = ("Smiling", "Blond_Hair", "Eyeglasses")
SIZE = 8


def say(line):
    raise AssertionError(f"nothing to say, but: {line}")


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
    """A set in CelebA's layout, 30 images of 20 x 24; its lists count as the published ones."""
    for number in range(1, 31):
        draw(tmp_path / "img_align_celeba" / f"{number:06}.jpg", number)
    write_lists(tmp_path)
    publish(tmp_path, monkeypatch)
    return tmp_path


def publish(folder, monkeypatch):
    for path in folder.glob("*.*"):
        monkeypatch.setitem(celeba.CELEBA_MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())


def load_celeba(folder, crop=0, skip=False, say=say):
    chosen = {"dataset": "celeba", "data_dir": str(folder), "image_size": SIZE, "image_crop": crop}
    return celeba.celeba(from_params(**chosen, skip_bad_images=skip), say)


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
    monkeypatch.setattr(images, "read_image", lambda path, how: crops.append((path, how.shape[0], how.crop)))
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


def test_celeba_is_read_as_its_authors_and_as_kaggle_have_it(faces):
    whole = load_celeba(faces)
    authors, kaggle = faces / "authors", faces / "kaggle"
    for folder, inner in (("Img", "img_align_celeba"), ("Anno", ATTRIBUTE), ("Eval", PARTITION)):
        (authors / folder).mkdir(parents=True)
        (authors / folder / inner).symlink_to(faces / inner)
    (kaggle / "img_align_celeba").mkdir(parents=True)
    (kaggle / "img_align_celeba" / "img_align_celeba").symlink_to(faces / "img_align_celeba")
    parts = (faces / PARTITION).read_text().replace(" ", ",")
    (kaggle / "list_eval_partition.csv").write_text(f"image_id,partition\n{parts}")
    rows = [",".join(line.split()) for line in (faces / ATTRIBUTE).read_text().splitlines()[2:]]
    (kaggle / "list_attr_celeba.csv").write_text("\n".join([f"image_id,{','.join(ATTRIBUTES)}", *rows]))
    for folder in (authors, kaggle):
        dataset = load_celeba(folder, say=lambda note: None)
        assert dataset.attributes == ATTRIBUTES
        np.testing.assert_array_equal(dataset.train_attributes, whole.train_attributes)
        np.testing.assert_array_equal(dataset.train_ids, whole.train_ids)
        np.testing.assert_array_equal(dataset.test_images[:], whole.test_images[:])
        early = celeba.celeba_labels(str(folder))
        assert [len(labels) for labels in early] == [len(whole.train_images), len(whole.test_images)]


def test_a_set_in_celebas_layout_is_welcome_but_not_called_verified(faces, monkeypatch):
    monkeypatch.setitem(celeba.CELEBA_MD5, "list_attr_celeba.txt", "another")
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


def test_no_test_images_are_told(faces):
    lines = [f"{number:06}.jpg {0}\n" for number in range(1, 31)]
    (faces / PARTITION).write_text("".join(lines))
    counts = r"30 images to train on \(0\) and 0 to test on \(2\); at least 1 of each is needed"
    with pytest.raises(DataError, match=f"^{faces / PARTITION}: {counts}$"):
        load_celeba(faces, say=lambda line: None)


def test_missing_images_are_told_though_validation_may_lack(faces):
    for number in in_part(1):
        (faces / "img_align_celeba" / f"{number:06}.jpg").unlink()
    load_celeba(faces)
    for number in (9, 5):  # one of train and one of test
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


def test_an_image_of_another_size_is_another_image(faces):
    before = load_celeba(faces)
    with open(faces / "img_align_celeba" / "000005.jpg", "ab") as file:
        file.write(b"more")
    after = load_celeba(faces)
    assert (before.train_ids == after.train_ids).all()
    assert (before.test_ids != after.test_ids).tolist() == [name == b"000005.jpg" for name in after.test_names]
    assert before.test_ids.tolist() != after.test_ids.tolist()


def zipped(faces, monkeypatch):
    """Move the images into the zip; its MD5 counts as the published one."""
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
    assert len(list((faces / "img_align_celeba").iterdir())) == 31  # including the one whose path was outside
    assert not [above for above in (faces, *faces.parents) if (above / "outside.jpg").exists()]
    archive.write_bytes(b"no longer looked at")
    assert numbers_of(load_celeba(faces).train_images) == in_part(0)


@pytest.mark.parametrize(("content", "why"), [
    (b"<!DOCTYPE html><html>Quota</html>",
     "an HTML page and no zip; a download over quota leaves one; fetch it again"),
    (b"PK\x03\x04 half of it",
     "not the published file (MD5); it is incomplete (15 bytes) or another file; fetch it again"),
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
    monkeypatch.setattr(celeba.shutil, "copyfileobj", stop_at_tenth)
    told = f"^{archive}: cannot be unpacked, No space left on device$" if raised is DataError else "^$"
    with pytest.raises(raised, match=told):
        load_celeba(faces)
    assert sorted(path.name for path in faces.iterdir()) == ["img_align_celeba.zip", ATTRIBUTE, PARTITION]


def test_neither_images_nor_zip_is_told(faces, monkeypatch):
    zipped(faces, monkeypatch).unlink()
    told = "neither img_align_celeba nor img_align_celeba.zip is there; set DATA_DIR to the folder that holds CelebA"
    with pytest.raises(DataError, match=f"^{faces}: {told}$"):
        load_celeba(faces)


def test_celeba_is_prepared_with_its_attributes(faces):
    chosen = {"dataset": "celeba", "data_dir": str(faces), "image_size": SIZE, "batch_size": 4}
    dataset = data.prepare(from_params(**chosen, held_out=4), say)
    train = np.array(in_part(0)) - 1
    np.testing.assert_array_equal(dataset.train_attributes, HAS[train[:-4]])
    np.testing.assert_array_equal(dataset.test_attributes, HAS[train[-4:]])
    with pytest.raises(SettingsError, match=r"^labels: 1 is not allowed; CelebA has 0 to 0$"):
        data.prepare(from_params(**chosen, labels=(1,)), say)
