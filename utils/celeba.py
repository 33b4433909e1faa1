"""CelebA (Liu et al. 2015) as a data set, from the user's folder, in the layout of its authors or of Kaggle.

Only names and attributes are kept in memory. Images are read when they are needed.
"""

import hashlib
import os
import shutil
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from utils.console import Say, shown
from utils.dataset import DataError, Dataset, hashed
from utils.images import BAR, Prepared, describe, is_html, lazy_files, survey, why_bad
from utils.settings import Settings

CELEBA_CROP = 148  # side of the square cut from 178 x 218 pixels; most VAEs on CelebA use it, resized to 64 (bilinear)
CELEBA_MD5 = {
    "img_align_celeba.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
    "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
    "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
}
PARTS = (b"0", b"1", b"2")  # the values in list_eval_partition.txt
TRAIN, TEST = 0, 2  # 1 is validation
QUOTA = "a download over quota leaves one; fetch it again"


def celeba(s: Settings, say: Say) -> Dataset:
    """CelebA, aligned and cropped, from DATA_DIR or a folder celeba/ or archive/ in it: RGB, 40 attributes as bool.

    The official splits are used: 0 for training, 2 for testing; 1, validation, is not used. All labels are 0. The
    folder needs list_eval_partition (or in Eval/) and list_attr_celeba (or in Anno/), each as .txt or as Kaggle's .csv.
    It also needs img_align_celeba/ or img_align_celeba.zip (or in Img/); the zip is unpacked once. Raises DataError.
    """
    folder, partition_list, attribute_list = celeba_places(s.data_dir)
    names, parts, attributes, values = read_lists(partition_list, attribute_list)
    others = [path.name for path in (partition_list, attribute_list) if not is_published(path)]
    for name in others:  # another data set in CelebA's layout is allowed
        say(f"note       {name} is not CelebA's own (MD5)")
    train, test = np.flatnonzero(parts == TRAIN), np.flatnonzero(parts == TEST)
    check_parts(partition_list, len(train), len(test))
    pictures = celeba_images(folder)
    used = np.sort(np.concatenate((train, test)))
    ids = np.zeros(len(names), np.uint64)
    ids[used] = look_for(pictures, names[used], partition_list)
    how = Prepared((s.image_size, s.image_size, 3), s.image_crop or CELEBA_CROP * (s.image_fit == "crop"), s.image_fit)
    details = {"split": f"{partition_list.name}: 0 trains, 2 tests"}
    if skipped := len(names) - len(used):
        details["left_out"] = [f"{skipped:,} x validation image, 1 in {partition_list.name}"]
    seen = survey(pictures, names[used][:100])
    details |= describe(seen, how, len(used)) if seen.count else {}
    lazy = lazy_files(pictures, names, how, s.skip_bad_images)
    labels = [np.zeros(len(part), np.uint8) for part in (train, test)]
    verified = "" if others else "lists verified by MD5"
    about = str(folder), verified, attributes, values[train], values[test]
    return Dataset(
        "CelebA", lazy.rows(train), labels[0], lazy.rows(test), labels[1], *about, train_ids=ids[train],
        test_ids=ids[test], train_names=names[train], test_names=names[test], details=details,
    )  # fmt: skip


def celeba_places(data_dir: str) -> tuple[Path, Path, Path]:
    """The folder of CelebA, its list of parts and its list of attributes; they may be missing."""
    base = Path(os.path.expanduser(data_dir))
    folders = [place for place in (base / "celeba", base / "archive", base) if place.is_dir()] or [base]
    lists = []
    for name, inner in (("list_eval_partition", "Eval"), ("list_attr_celeba", "Anno")):
        forms = [Path(name + ending) for ending in (".txt", ".csv")]
        forms += [inner / form for form in forms]
        there = [folder / form for folder in folders for form in forms if (folder / form).is_file()]
        lists.append((there or [folders[0] / forms[0]])[0])
    folder = next(folder for folder in folders if lists[0].is_relative_to(folder))
    return folder, *lists


def check_parts(partition: Path, train: int, test: int) -> None:
    """Raise DataError if there is no image to train on, or none to test on."""
    if not train or not test:
        few = f"{train:,} images to train on (0) and {test:,} to test on (2)"
        raise DataError(f"{partition}: {few}; at least 1 of each is needed")


def celeba_labels(data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels of CelebA's training and test images, all 0. The lists are not yet checked line by line.

    Raises DataError.
    """
    _, partition, attributes = celeba_places(data_dir)
    check_lists(partition, attributes)
    counts = Counter(line.replace(b",", b" ").split()[-1] for line in rows_of_list(partition) if line.strip())
    if not counts or counts.keys() - set(PARTS):
        read_table(partition, 1, PARTS)  # this raises DataError
    train, test = (counts[PARTS[part]] for part in (TRAIN, TEST))
    check_parts(partition, train, test)
    return np.zeros(train, np.uint8), np.zeros(test, np.uint8)


def celeba_images(folder: Path) -> Path:
    """The folder of the images, unpacked from the zip beside it if necessary. Raises DataError."""
    if (folder / "Img").is_dir():  # the authors' layout
        folder = folder / "Img"
    pictures, archive = folder / "img_align_celeba", folder / "img_align_celeba.zip"
    if not pictures.is_dir():
        if not archive.is_file():
            missing = "neither img_align_celeba nor img_align_celeba.zip is there"
            raise DataError(f"{folder}: {missing}; set DATA_DIR to the folder that holds CelebA")
        if not is_published(archive):
            with open(archive, "rb") as file:
                page = is_html(file.read(512))
            size = f"incomplete ({archive.stat().st_size:,} bytes)"
            other = f"not the published file (MD5); it is {size} or another file; fetch it again"
            raise DataError(f"{archive}: {f'an HTML page and no zip; {QUOTA}' if page else other}")
        unpack(archive, pictures)
    nested = pictures / "img_align_celeba"  # the layout of some repackaged zips
    return nested if nested.is_dir() else pictures


def is_published(path: Path) -> bool:
    """Whether one of CelebA's files is the published one, by its MD5."""
    digest, size = hashlib.md5(usedforsecurity=False), path.stat().st_size
    with open(path, "rb") as file, tqdm.wrapattr(file, "read", total=size, desc="checking", **BAR) as watched:
        while block := watched.read(2**20):
            digest.update(block)
    return digest.hexdigest() == CELEBA_MD5.get(path.name)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the JPEGs of a zip into the folder `target`, which appears complete or not at all. Raises DataError."""
    try:
        with zipfile.ZipFile(archive) as members, TemporaryDirectory(prefix=".", dir=target.parent) as beside:
            whole = Path(beside, target.name)
            whole.mkdir()
            for member in tqdm(members.infolist(), desc="unpacking", unit=" images", **BAR):
                name = member.filename.replace("\\", "/").rpartition("/")[2]  # without folders, so ../ cannot escape
                if name.lower().endswith(".jpg") and not name.startswith("."):
                    with members.open(member) as packed, open(whole / name, "xb") as file:
                        shutil.copyfileobj(packed, file)
            if not target.is_dir():  # another run may have made it meanwhile
                os.rename(whole, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be unpacked, {why_bad(error)}") from None


def read_lists(partition: Path, path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    """Read CelebA's list of parts and its list of attributes (`path`).

    Returns the names of N images, as bytes; their parts (N,); A attributes; and whether each image has them, bool
    (N, A). Raises DataError if a list is missing, is a web page or has a wrong line, or if the lists have different
    images.
    """
    check_lists(partition, path)
    names, parts = read_table(partition, 1, PARTS)
    with open(path, "rb") as file:
        first, second = file.readline().strip(), file.readline().split()
    is_csv = path.suffix == ".csv"
    if not is_csv and not first.isdigit():
        raise DataError(f"{path}, line 1: {first.decode(errors='replace')[:60]!r} is not the number of images")
    attributes = first.split(b",")[1:] if is_csv else second
    listed, values = read_table(path, len(attributes), (b"-1", b"1"))
    if not is_csv and len(listed) != int(first):
        raise DataError(f"{path}, line 1: {int(first):,} images are announced, but {len(listed):,} are listed")
    if len(listed) != len(names):
        raise DataError(f"{path}: {len(listed):,} images, but {partition.name} has {len(names):,}")
    if len(different := np.flatnonzero(listed != names)):
        here, there = (shown(bytes(each[different[0]])) for each in (listed, names))
        raise DataError(
            f"{path}, line {different[0] + 1 + header_lines(path)}: {here}, where {partition.name} has {there}"
        )
    return names, parts[:, 0], tuple(name.decode(errors="replace") for name in attributes), values.astype(bool)


def check_lists(*paths: Path) -> None:
    """Raise DataError if a list is missing or is a web page."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                start = file.read(512)
        except OSError as error:
            raise DataError(f"{path}: {why_bad(error)}; set DATA_DIR to the folder that holds CelebA") from None
        if is_html(start):
            raise DataError(f"{path}: an HTML page and no list; {QUOTA}")


def header_lines(path: Path) -> int:
    """The number of lines in a list above the images."""
    return 1 if path.suffix == ".csv" else 2 if path.name.startswith("list_attr") else 0


def rows_of_list(path: Path) -> list[bytes]:
    """The lines of a list below its header."""
    with open(path, "rb") as file:
        return list(islice(file, header_lines(path), None))


def read_table(path: Path, columns: int, allowed: tuple[bytes, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Read the lines of a list below its header, each a name and `columns` values.

    Returns the names, bytes (N,), and the values as positions in `allowed`, uint8 (N, columns). Raises DataError, which
    names the first wrong line.
    """
    names, rows, codes = [], [], {value: code for code, value in enumerate(allowed)}
    for line, text in enumerate(rows_of_list(path), header_lines(path) + 1):
        name, *values = text.replace(b",", b" ").split() or [b""]
        if len(values) != columns or not codes.keys() >= set(values):
            expected = f"a name and {columns} of {', '.join(value.decode() for value in allowed)}"
            wrong = text.decode(errors="replace").strip()[:60]
            raise DataError(f"{path}, line {line}: {wrong!r} is not {expected}")
        names.append(name)
        rows.append(bytes(map(codes.get, values)))
    if not names:
        raise DataError(f"{path}: it lists no images")
    return np.array(names), np.frombuffer(b"".join(rows), np.uint8).reshape(-1, columns)


def look_for(folder: Path, names: np.ndarray, listed_in: Path) -> np.ndarray:
    """The ids, uint64 (N,), of files: hashes of name and size. Raises DataError if a file is missing."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(os.fsencode(folder))}
    missing = [name for name in map(bytes, names) if name not in sizes]
    if missing:
        which = f"{len(missing):,} of the images that {listed_in.name} lists are missing"
        raise DataError(f"{folder}: {which}; the first is {shown(missing[0])}")
    return hashed(name + b"%d" % sizes[name] for name in map(bytes, names))
