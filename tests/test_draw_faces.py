"""experiments/draw_faces.py: CelebA's formats to the byte, and attributes that are true in the pixels."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from experiments import draw_faces
from experiments.draw_faces import attributes, draw, draw_face, factors
from tests.shared import REPOSITORY, contents

NAMES = (  # the second line of the published list, with its blank at the end
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young "
)
EYES, CHEEKS, MOUTH, HEAD = (40, 80, 138, 132), (35, 112, 143, 150), (50, 134, 128, 180), (25, 40, 153, 200)
TOP, BEARD, EVERYWHERE = (20, 30, 158, 120), (35, 110, 143, 190), (0, 0, 178, 218)
SHOWN = [  # a factor, its two values, the attributes that are true with each alone, and the box in which it is seen
    ("smile", 0.1, 0.45, "", "Smiling", MOUTH),
    ("mouth_open", 0.0, 0.4, "", "Mouth_Slightly_Open", MOUTH),
    ("lipstick", False, True, "", "Wearing_Lipstick", MOUTH),
    ("glasses", False, True, "", "Eyeglasses", EYES),
    ("eye_open", 0.7, 0.4, "", "Narrow_Eyes", EYES),
    ("bushy", False, True, "", "Bushy_Eyebrows", EYES),
    ("nose", 0.25, 0.8, "", "Big_Nose", CHEEKS),
    ("rosy", False, True, "", "Rosy_Cheeks", CHEEKS),
    ("pale", False, True, "", "Pale_Skin", HEAD),
    ("earrings", False, True, "", "Wearing_Earrings", HEAD),
    ("bangs", False, True, "", "Bangs", TOP),
    ("hat", False, True, "", "Wearing_Hat", TOP),
    ("bald", False, True, "Black_Hair", "Bald", EVERYWHERE),
    ("hair", "Black", "Blond", "Black_Hair", "Blond_Hair", EVERYWHERE),
    ("hair", "Brown", "Gray", "Brown_Hair", "Gray_Hair", EVERYWHERE),
    ("hair", "Black", "Brown", "Black_Hair", "Brown_Hair", EVERYWHERE),
    ("male", False, True, "", "Male", EVERYWHERE),
    ("beard", "none", "mustache", "No_Beard", "Mustache", BEARD),
    ("beard", "none", "goatee", "No_Beard", "Goatee", BEARD),
    ("beard", "none", "full", "No_Beard", "Mustache Sideburns", BEARD),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of a set of 400 faces."""
    folder = tmp_path_factory.mktemp("faces") / "new" / "set"
    draw(folder, 400)
    return folder


def true_names(face) -> set[str]:
    return {name for name, true in attributes(face).items() if true}


def read_list(folder: Path) -> dict[str, np.ndarray]:
    """Each attribute's values by image, read like the published list."""
    _, names, *lines = (folder / "list_attr_celeba.txt").read_text().splitlines()
    return dict(zip(names.split(), np.array([line.split()[1:] for line in lines], int).T, strict=True))


def test_the_lists_are_in_the_published_format_to_the_byte(drawn):
    lines = (drawn / "list_attr_celeba.txt").read_bytes().split(b"\n")
    first = (  # the first image as it looks, e.g. 13th, bushy eyebrows, and 36th, a hat
        b"000001.jpg -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1  1 -1 -1 -1 -1  1 -1 -1 "
        b"-1  1 -1  1  1 -1 -1 -1 -1 -1 -1  1 -1 -1  1  1 -1 -1 -1 -1"
    )
    assert lines[:3] == [b"400", NAMES.encode(), first]
    assert [len(line) for line in lines[2:]] == [130] * 400 + [0]
    partition = (drawn / "list_eval_partition.txt").read_bytes()
    expected = "".join(f"{n:06}.jpg {0 if n <= 322 else 1 if n <= 361 else 2}\n" for n in range(1, 401))
    assert partition == expected.encode()  # 400 x 19,867 / 202,599 is 39.2; for the test it is 39.4


def test_the_images_are_those_that_the_lists_name_in_the_size_and_format_of_celeba(drawn):
    expected = {f"img_align_celeba/{number:06}.jpg" for number in range(1, 401)}
    assert set(contents(drawn)) == expected | {"list_attr_celeba.txt", "list_eval_partition.txt"}
    for path in (drawn / "img_align_celeba").iterdir():
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (178, 218))


def test_an_image_is_the_same_bits_in_every_set_of_a_seed_however_many_draw_it(drawn, tmp_path):
    few = tmp_path / "few"
    draw(few, 100, jobs=2)
    of_400, of_100 = contents(drawn), contents(few)
    images = [name for name in of_100 if name.endswith(".jpg")]
    assert len({of_100[name] for name in images}) == 100
    assert all(of_100[name] == of_400[name] for name in images)
    rows = of_100["list_attr_celeba.txt"].split(b"\n")[2:-1]
    assert rows == of_400["list_attr_celeba.txt"].split(b"\n")[2:102]
    assert factors(1, 1) != factors(0, 1)


def test_smiling_is_true_where_the_corners_of_the_mouth_are_up(drawn):
    """The mouth is found by its colour, which lipstick makes easy, without knowing how it was drawn."""
    values = read_list(drawn)
    numbers = np.flatnonzero(values["Wearing_Lipstick"] == 1) + 1
    up = []
    for number in numbers:
        pixels = np.float32(Image.open(drawn / "img_align_celeba" / f"{number:06}.jpg"))
        red, green, blue = pixels[136:178, 58:120].transpose(2, 0, 1)
        y, x = np.nonzero((red > 110) & (red > 3.2 * green) & (red > 2 * blue))
        across = np.abs(2 * (x - x.min()) / (x.max() - x.min()) - 1)  # 0 in the middle, 1 at the corners
        up.append(y[across < 0.2].mean() - y[across > 0.8].mean() > 2.5)
    assert len(numbers) > 80
    assert np.mean(up == (values["Smiling"][numbers - 1] == 1)) > 0.97


@pytest.mark.parametrize(("factor", "first", "second", "with_first", "with_second", "box"), SHOWN)
def test_an_attribute_is_seen_where_it_belongs_and_nowhere_else(factor, first, second, with_first, with_second, box):
    """For faces that are otherwise the same, within the crop and at the size that models are trained on."""
    for number in range(1, 31):
        face = factors(5, number)._replace(bald=False, bangs=False, hat=False, male=factor == "beard", hair="Black")
        if factor == "male":
            face = face._replace(beard="none")
        one, other = face._replace(**{factor: first}), face._replace(**{factor: second})
        assert true_names(one) - true_names(other) == set(with_first.split())
        assert true_names(other) - true_names(one) == set(with_second.split())
        images = draw_face(one), draw_face(other)
        left, top, right, bottom = ImageChops.difference(*images).getbbox()
        assert box[0] <= left < right <= box[2]
        assert box[1] <= top < bottom <= box[3]
        small = [np.float32(image.resize((64, 64), Image.Resampling.BOX, (15, 35, 163, 183))) for image in images]
        assert (np.abs(small[0] - small[1]).max(axis=2) > 16).sum() >= 6, number


def test_attributes_are_common_enough_exclude_each_other_as_they_should_and_are_else_independent():
    faces = [factors(0, number) for number in range(1, 4_001)]
    values = np.array([list(attributes(face).values()) for face in faces])
    shares = dict(zip(attributes(faces[0]), values.mean(axis=0), strict=True))
    seen = {name for row in SHOWN for name in f"{row[3]} {row[4]}".split()}
    assert len(seen) == 22
    assert all(0.05 < shares[name] < 0.8 for name in seen)
    assert {name for name, share in shares.items() if share == 0} == set(NAMES.split()) - seen
    for face in faces:
        names = true_names(face)
        assert len(names & {"Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"}) == (not face.bald)
        assert not {"Bald", "Bangs"} & names or "Wearing_Hat" not in names
        assert ("No_Beard" in names) != bool(names & {"Mustache", "Goatee", "Sideburns"})
        assert "No_Beard" in names or "Male" in names
        assert not 0.1 < face.smile < 0.45
    free = ["Smiling", "Male", "Eyeglasses", "Wearing_Hat", "Mouth_Slightly_Open", "Wearing_Lipstick", "Pale_Skin"]
    correlations = np.corrcoef(values[:, [NAMES.split().index(name) for name in free]].T) - np.eye(len(free))
    assert np.abs(correlations).max() < 0.06  # for independent ones, the standard deviation is 1 / sqrt(4,000) = 0.016


@pytest.mark.parametrize(
    ("images", "expected"),
    [(202_599, (162_770, 19_867, 19_962)), (2_000, (1_607, 196, 197)), (5, (3, 1, 1)), (3, (1, 1, 1))],
)
def test_the_splits_have_the_proportions_of_celeba_and_none_is_empty(images, expected):
    assert draw_faces.splits(images) == expected


@pytest.mark.parametrize("taken", ["img_align_celeba/", "list_attr_celeba.txt", "list_eval_partition.txt"])
def test_a_folder_that_holds_a_set_is_refused_in_one_line_and_left_alone(taken, tmp_path, capsys):
    path = tmp_path / taken
    path.mkdir() if taken.endswith("/") else path.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert draw_faces.main(draw_faces.read_command_line([str(tmp_path), "--images", "10"])) == 2
    expected = f"draw_faces: error: {tmp_path} holds {taken.strip('/')} already; name a folder without\n"
    assert capsys.readouterr().err == expected
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--images", "2"], "argument --images: '2' is not allowed; an integer from 3 to 999,999 is"),
        (["x", "--images", "1e3"], "argument --images: '1e3' is not allowed; an integer from 3 to 999,999 is"),
        (["x"], "the following arguments are required: --images"),
    ],
)
def test_a_mistake_is_told_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        draw_faces.read_command_line(words)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"draw_faces: error: {message}\n"


def test_a_set_that_was_interrupted_has_no_lists_and_goes_on_with_what_is_missing(drawn, tmp_path, monkeypatch):
    count = 0

    def interrupted(face):
        nonlocal count
        count += 1
        if count == 71:
            raise KeyboardInterrupt
        return draw_face(face)

    monkeypatch.setattr(draw_faces, "draw_face", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, 400)
    assert set(contents(tmp_path)) == {"unfinished.txt"} | {f"img_align_celeba/{n:06}.jpg" for n in range(1, 71)}
    (tmp_path / "img_align_celeba" / ".000071.jpg.x1y2").write_bytes(b"killed here")
    with pytest.raises(draw_faces.FolderTaken, match="draw with --images 400 --seed 0 to finish it"):
        draw(tmp_path, 400, seed=1)
    draw(tmp_path, 400)
    assert count == 71 + 330
    assert contents(tmp_path) == contents(drawn)


def test_ctrl_c_ends_all_processes_with_one_line_and_tensorflow_is_not_loaded(tmp_path):
    code = "import sys, experiments.draw_faces; sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)
    words = [sys.executable, "-m", "experiments.draw_faces", str(tmp_path), "--images", "100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=REPOSITORY, start_new_session=True, **pipes)
    try:
        until = time.monotonic() + 120
        while not any(tmp_path.glob("img_align_celeba/0*")) and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # to all processes, as a terminal does
        out, err = process.communicate(timeout=120)  # waits until the last one has closed its end
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == "\nstopped    the same command goes on from here\n"
    assert "Traceback" not in err
    assert not (tmp_path / "list_attr_celeba.txt").exists()


def test_the_processes_that_draw_leave_ctrl_c_to_the_one_that_asks_them():
    before = signal.getsignal(signal.SIGINT)
    assert list(draw_faces.in_processes(signal.getsignal, [signal.SIGINT], jobs=1)) == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) == before
