"""Draw a data set of faces in CelebA's layout and file formats, to try code that reads CelebA without the real set.

    python -m experiments.draw_faces faces --images 2000
    python -m experiments.draw_faces many --images 200000 --seed 1

It makes the folder if it is missing, and writes

- img_align_celeba/000001.jpg and so on, RGB JPEGs of 178 x 218 pixels;
- list_attr_celeba.txt, the 40 attributes of each image, 1 or -1. 22 of them describe the drawing, such as Smiling,
  Eyeglasses or Black_Hair (the function `attributes` lists them); the others are always -1;
- list_eval_partition.txt, in CelebA's proportions: the first images train (0), then come validation (1) and test (2).

The parts of a face are drawn independently, except that hair has one colour, only men have beards, and a hat hides
bangs and bald heads. Image 7 of a seed is the same in every set. The lists are written last. After Ctrl-C the same
command goes on with the images that are missing.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from utils import console
from utils.console import experiment_parser, whole
from utils.files import write_whole

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 178, 218  # pixels of an aligned image of CelebA
QUALITY = 85  # of the JPEGs
SPLITS = 162_770, 19_867, 19_962  # images that CelebA trains on, validates with and tests with
CHUNK = 64  # images that a process draws between two reports
IMAGE_FOLDER, ATTRIBUTE_LIST, SPLIT_LIST = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
UNFINISHED = "unfinished.txt"  # until the lists are written, it says which set is being drawn

ATTRIBUTES = (  # in CelebA's order
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip

HAIR = {"Black": (30, 26, 30), "Blond": (232, 190, 96), "Brown": (100, 54, 24), "Gray": (172, 172, 178)}
PALE = (253, 236, 230)
SKINS = np.array([(246, 206, 180), (229, 178, 138), (202, 142, 98), (162, 106, 72), (126, 84, 62)])  # light to dark
EYES = ((70, 110, 160), (84, 128, 80), (96, 62, 36), (50, 34, 26))
CLOTHES = ((186, 52, 60), (44, 84, 150), (54, 120, 84), (120, 76, 140), (60, 62, 70), (222, 170, 60), (232, 232, 226))
WHITE, DARK, MOUTH, GOLD = (252, 252, 250), (36, 26, 28), (104, 28, 36), (240, 200, 70)


# --- what makes up a face ---------------------------------------------------------------------------------------------
class Face(NamedTuple):
    """All that a drawing depends on. Numbers are about 1 in size; a number that decides an attribute has a gap."""

    skin: float  # 0 light to 1 dark; ignored if pale
    pale: bool
    hair: str  # a key of HAIR; also the colour of the beard and the eyebrows
    tint: float  # of the hair, -1 darker to 1 lighter
    length: float  # of the hair, 0 short to 1 over the shoulders
    bald: bool
    bangs: bool
    hat: bool
    male: bool  # a broad jaw and neck, and perhaps a beard
    beard: str  # "none", "mustache", "goatee" or "full", of men
    smile: float  # -0.35 corners down to 0.1; smiling 0.45 to 1
    mouth_open: float  # 0, or 0.4 to 1
    lipstick: bool
    eye_open: float  # 0.7 to 0.95; narrow 0.3 to 0.4
    eye_colour: Colour
    bushy: bool  # eyebrows
    nose: float  # its size, 0 to 0.25; big 0.8 to 1
    rosy: bool  # cheeks
    glasses: bool
    earrings: bool
    turn: float  # of the head, -1 to the image's left, 1 to its right
    nod: float  # -1 up to 1 down
    shift: tuple[float, float]  # of the head, right and down, -1 to 1
    width: float  # of the head, -1 narrow to 1 wide
    background: Colour
    clothes: Colour
    hat_colour: Colour
    light: float  # -1 from the left to 1 from the right
    brightness: float  # 0 to 1


def factors(seed: int, number: int) -> Face:
    """The face of image `number`, 1, 2, ..., of a set; it depends only on the two. Factors are drawn independently."""
    rng = np.random.default_rng((seed, number))

    def chance(share: float) -> bool:
        return rng.random() < share

    def within(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    def one_of(*things):
        return things[int(len(things) * rng.random())]

    return Face(
        skin=within(0, 1),
        pale=chance(0.15),
        hair=one_of(*HAIR),
        tint=within(-1, 1),
        length=within(0, 1),
        bald=chance(0.1),
        bangs=chance(0.3),
        hat=chance(0.12),
        male=chance(0.5),
        beard=one_of("none", "none", "none", "mustache", "goatee", "full"),
        smile=within(0.45, 1) if chance(0.5) else within(-0.35, 0.1),
        mouth_open=within(0.4, 1) if chance(0.45) else 0.0,
        lipstick=chance(0.3),
        eye_open=within(0.3, 0.4) if chance(0.2) else within(0.7, 0.95),
        eye_colour=one_of(*EYES),
        bushy=chance(0.25),
        nose=within(0.8, 1) if chance(0.25) else within(0, 0.25),
        rosy=chance(0.2),
        glasses=chance(0.2),
        earrings=chance(0.2),
        turn=within(-1, 1),
        nod=within(-1, 1),
        shift=(within(-1, 1), within(-1, 1)),
        width=within(-1, 1),
        background=(int(within(60, 235)), int(within(60, 235)), int(within(60, 235))),
        clothes=one_of(*CLOTHES),
        hat_colour=one_of(*CLOTHES),
        light=within(-1, 1),
        brightness=within(0, 1),
    )


def attributes(face: Face) -> dict[str, bool]:
    """Which of CelebA's 40 attributes a drawn face has, in their order."""
    beard = face.beard if face.male else "none"
    true = {
        "Bald": face.bald and not face.hat,
        "Bangs": face.bangs and not face.bald and not face.hat,
        "Big_Nose": face.nose > 0.5,
        **{f"{hair}_Hair": face.hair == hair and not face.bald for hair in HAIR},
        "Bushy_Eyebrows": face.bushy,
        "Eyeglasses": face.glasses,
        "Goatee": beard == "goatee",
        "Male": face.male,
        "Mouth_Slightly_Open": face.mouth_open > 0.2,
        "Mustache": beard in ("mustache", "full"),
        "Narrow_Eyes": face.eye_open < 0.55,
        "No_Beard": beard == "none",  # as with CelebA's, a mustache counts as a beard
        "Pale_Skin": face.pale,
        "Rosy_Cheeks": face.rosy,
        "Sideburns": beard == "full",
        "Smiling": face.smile > 0.3,
        "Wearing_Earrings": face.earrings,
        "Wearing_Hat": face.hat,
        "Wearing_Lipstick": face.lipstick,
    }
    return {name: true.get(name, False) for name in ATTRIBUTES}


# --- the drawing ------------------------------------------------------------------------------------------------------
class Place(NamedTuple):
    """Where the parts of a face lie, in pixels: the middle of the head, half its size, the middle of its features."""

    x: float
    y: float
    half_width: float
    half_height: float
    front_x: float  # a turned head shows its features away from its middle
    front_y: float
    slant: float  # -1 to 1, how far the head is turned


ANGLES = np.linspace(0, 2 * np.pi, 49)
COSINES, SINES = np.cos(ANGLES), np.sin(ANGLES)
BELOW, ABOVE = slice(0, 25), slice(24, 49)  # the angles below the middle, and those above it
ACROSS = np.linspace(-1, 1, 17)  # from the left end of a mouth or a hairline to the right end


def draw_face(face: Face) -> Image.Image:
    """Draw a face: an RGB image of 178 x 218 pixels."""
    image = Image.new("RGB", (WIDTH, HEIGHT), face.background)
    pen = ImageDraw.Draw(image)
    x, y = 89 + 4 * face.shift[0], 117 + 3 * face.shift[1]
    place = Place(x, y, 46 + 3 * face.width, 60, x + 10 * face.turn, y + 4 * face.nod, face.turn)
    skin = PALE if face.pale else skin_colour(face.skin)
    hair = tuple(int(value + 10 * face.tint) for value in HAIR[face.hair])
    draw_behind(pen, place, face, skin, hair)
    draw_head(pen, place, face, skin, hair)
    if face.glasses:
        draw_glasses(pen, place, skin)
    draw_eyes(pen, place, face, skin, hair)
    draw_nose(pen, place, face, skin)
    draw_mouth(pen, place, face, skin)
    draw_on_top(pen, place, face, hair)
    return lit(image, face.light, face.brightness)


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """The first colour with a share of the second, 0 to 1."""
    return tuple(int(a + share * (b - a)) for a, b in zip(first, second, strict=True))


def skin_colour(darkness: float) -> Colour:
    """The skin colour for a darkness from 0 (light) to 1 (dark)."""
    steps = np.arange(len(SKINS)) / (len(SKINS) - 1)
    return tuple(int(np.interp(darkness, steps, channel)) for channel in SKINS.T)


def ellipse(pen: ImageDraw.ImageDraw, x: float, y: float, half_width: float, half_height: float, **look) -> None:
    """Draw an ellipse, given by its middle and half its size."""
    pen.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), **look)


def area(pen: ImageDraw.ImageDraw, x: np.ndarray, y: np.ndarray, colour: Colour) -> None:
    """Draw a polygon, given by its corners, x and y (N,)."""
    pen.polygon(np.array((x, y)).T.ravel().tolist(), fill=colour)


def band(pen: ImageDraw.ImageDraw, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: Colour) -> None:
    """Fill the area between two lines, top and bottom (N,), at the same x (N,)."""
    area(pen, np.concatenate((x, x[::-1])), np.concatenate((top, bottom[::-1])), colour)


def head_outline(place: Place, male: bool) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a head, x and y (N,): half an ellipse on top, a broad jaw or a narrow chin below."""
    power = np.where(SINES > 0, 0.78 if male else 1.12, 1)  # the exponent of a superellipse
    x = place.x + place.half_width * np.sign(COSINES) * np.abs(COSINES) ** power
    return x, place.y + place.half_height * np.sign(SINES) * np.abs(SINES) ** (1 / power)


def draw_behind(pen: ImageDraw.ImageDraw, place: Place, face: Face, skin: Colour, hair: Colour) -> None:
    """Draw what the head partly hides: long hair, the shoulders, the neck, the ears and the earrings."""
    x, y = place.x - 2 * place.slant, place.y
    if not face.bald:
        side = place.half_width + 4 + 6 * face.length
        pen.rounded_rectangle((x - side, y - 56, x + side, y + 5 + 95 * face.length), radius=40, fill=hair)
    neck = 27 if face.male else 20
    ellipse(pen, place.x, HEIGHT + 22, 84 if face.male else 74, 48, fill=face.clothes)
    pen.rounded_rectangle((x - neck, y + 30, x + neck, y + 80), radius=14, fill=mixed(skin, DARK, 0.22))
    for side in (-1, 1):
        ear = x + side * (place.half_width + 1)
        ellipse(pen, ear, y + 6, 7, 12, fill=mixed(skin, DARK, 0.12))
        if face.earrings:
            ellipse(pen, ear + 2 * side, y + 24, 5, 6, fill=GOLD, outline=(150, 110, 20))


def draw_head(pen: ImageDraw.ImageDraw, place: Place, face: Face, skin: Colour, hair: Colour) -> None:
    """Draw the head with cheeks and a beard."""
    x, y = head_outline(place, face.male)
    area(pen, x, y, skin)
    if face.rosy:
        for side in (-1, 1):
            cheek = place.front_x + side * 27
            ellipse(pen, cheek, place.front_y + 15, 9, 7, fill=mixed(skin, (236, 84, 96), 0.42))
    if face.male and face.beard == "full":
        edge = place.front_y + 20 - 22 * np.abs(COSINES[BELOW]) ** 6
        band(pen, x[BELOW], edge, np.maximum(edge, y[BELOW]), hair)
    if face.male and face.beard == "goatee":
        ellipse(pen, place.front_x, place.y + 51, 13, 10, fill=hair)
    if face.male and face.beard in ("mustache", "full"):
        middle = place.front_y + 26 + 5 * ACROSS**2
        band(pen, place.front_x + 21 * ACROSS, middle - 5 * (1 - ACROSS**4), middle + 3, hair)


def eye_places(place: Place) -> tuple[tuple[float, float], ...]:
    """The middles of the two eyes; they look closer together if the head is turned."""
    apart = 20 - 2 * abs(place.slant)
    return (place.front_x - apart, place.front_y - 6), (place.front_x + apart, place.front_y - 6)


def draw_glasses(pen: ImageDraw.ImageDraw, place: Place, skin: Colour) -> None:
    """Draw eyeglasses; the lenses are lighter than the skin, so that they also show on dark skin."""
    (left, y), (right, _) = eye_places(place)
    pen.line((place.x - place.half_width, y - 2, place.x + place.half_width, y - 2), fill=DARK, width=3)
    for x in (left, right):
        ellipse(pen, x, y, 16, 13, fill=mixed(skin, WHITE, 0.45), outline=DARK, width=3)


def draw_eyes(pen: ImageDraw.ImageDraw, place: Place, face: Face, skin: Colour, hair: Colour) -> None:
    """Draw eyebrows, and eyes that look where the head is turned."""
    brow = mixed(hair, DARK, 0.45)
    half_height = 7.5 * face.eye_open
    for x, y in eye_places(place):
        ellipse(pen, x, y - 1.5, 10.5, half_height + 1, fill=DARK)  # its upper edge stays visible as the lashes
        ellipse(pen, x, y, 10, half_height, fill=WHITE)
        ellipse(pen, x + 2 * place.slant, y, 5.5, min(6, half_height), fill=face.eye_colour)
        ellipse(pen, x + 2 * place.slant, y, 2.5, min(3, half_height), fill=DARK)
        ellipse(pen, x + 2 * place.slant + 2, y - 2, 1, 1, fill=WHITE)
        thick = 4 if face.bushy else 1.2
        arch = y - 17 + 3 * ACROSS**2
        band(pen, x + 12 * ACROSS, arch - thick / 2, arch + thick, brow)


def draw_nose(pen: ImageDraw.ImageDraw, place: Place, face: Face, skin: Colour) -> None:
    """Draw a nose. It sticks out, so it moves most when the head turns."""
    x, y = place.front_x + 5 * place.slant, place.front_y + 14
    half_width, shade = 4.5 + 8.5 * face.nose, mixed(skin, (90, 20, 20), 0.32)
    pen.polygon((place.front_x, y - 14, x - half_width, y + 2, x + half_width, y + 2), fill=mixed(skin, shade, 0.45))
    ellipse(pen, x, y + 1, half_width, 3.5 + 3 * face.nose, fill=shade)


def draw_mouth(pen: ImageDraw.ImageDraw, place: Place, face: Face, skin: Colour) -> None:
    """Draw lips around a line that the smile bends, and teeth between them."""
    x = place.front_x + (17 + 4 * face.smile) * ACROSS
    line = place.front_y + 35 + 10 * face.smile * (0.5 - ACROSS**2)  # a smile lifts the corners
    bulge = 1 - ACROSS**2
    lips, thick = (mixed(skin, (176, 52, 62), 0.6), 3.2) if not face.lipstick else ((206, 14, 52), 5)
    top, bottom = line - 3.5 * face.mouth_open * bulge, line + 7.5 * face.mouth_open * bulge
    band(pen, x, top - 0.8 - thick * bulge, bottom + 0.8 + thick * bulge, lips)
    if face.mouth_open:
        band(pen, x[1:-1], top[1:-1], bottom[1:-1], MOUTH)
        band(pen, x[2:-2], top[2:-2], top[2:-2] + 5 * face.mouth_open * bulge[2:-2], WHITE)
    else:
        pen.line(np.array((x, line)).T.ravel().tolist(), fill=mixed(lips, DARK, 0.55), width=2)


def draw_on_top(pen: ImageDraw.ImageDraw, place: Place, face: Face, hair: Colour) -> None:
    """Draw hair around the forehead, or over it as bangs, and a hat."""
    x, y = place.x - 2 * place.slant, place.y
    if not face.bald:
        hairline, power = (y - 31, 8) if face.bangs else (y - 46, 2.5)
        across = COSINES[ABOVE]
        edge = hairline + (y - 4 - hairline) * np.abs(across) ** power
        inner = place.front_x + (place.x - place.front_x) * np.abs(across) + (place.half_width - 4) * across
        outer = x + (place.half_width + 5) * across, y - 4 + (place.half_height + 5) * SINES[ABOVE]
        area(pen, np.concatenate((outer[0], inner[::-1])), np.concatenate((outer[1], edge[::-1])), hair)
        # A dark line, so that the hair also shows on dark skin.
        pen.line(np.array((inner, edge)).T.ravel().tolist(), fill=mixed(hair, DARK, 0.4), width=2)
    if face.hat:
        side = place.half_width + 9
        area(pen, x + side * COSINES[ABOVE], y - 32 + 50 * SINES[ABOVE], face.hat_colour)
        brim = mixed(face.hat_colour, DARK, 0.35)
        pen.rounded_rectangle((x - side - 3, y - 42, x + side + 3, y - 31), radius=5, fill=brim)


def lit(image: Image.Image, light: float, brightness: float) -> Image.Image:
    """The image lit from one side, -1 left to 1 right, with a brightness from 0 to 1."""
    slope = abs(light) - light * np.linspace(-1, 1, WIDTH)
    row = np.uint16(256 * (0.88 + 0.12 * brightness) * (1 - 0.16 * slope)).repeat(3)  # a factor for each of 178 x 3
    values = np.asarray(image).reshape(HEIGHT, -1) * row >> 8
    return Image.fromarray(np.uint8(values).reshape(HEIGHT, WIDTH, 3))


# --- the set ----------------------------------------------------------------------------------------------------------
class FolderTaken(console.Problem):
    """The folder already holds another set, finished or not."""

    exit_code = 2


def draw(folder: Path, images: int, seed: int = 0, jobs: int = 0) -> None:
    """Draw a set of `images`, 3 to 999,999, into `folder`, in `jobs` processes; 0 jobs: in this process.

    An unfinished set is continued. Raises FolderTaken, OSError, and BrokenProcessPool if a process was killed.
    """
    begin(folder, f"--images {images} --seed {seed}")
    chunks = [range(first, min(first + CHUNK, images + 1)) for first in range(1, images + 1, CHUNK)]
    lines: list[str] = []
    with (
        closing(in_processes(partial(draw_chunk, folder / IMAGE_FOLDER, seed), chunks, jobs)) as drawn,
        tqdm(total=images, unit=" images", ncols=79, ascii=" #") as bar,
    ):
        for chunk in drawn:
            lines += chunk
            bar.update(len(chunk))
    write_whole(folder / ATTRIBUTE_LIST, "".join((f"{images}\n", " ".join(ATTRIBUTES), " \n", *lines)).encode())
    split_of = np.repeat(range(3), splits(images)).tolist()
    split_lines = (f"{file_name(number)} {split}\n" for number, split in enumerate(split_of, start=1))
    write_whole(folder / SPLIT_LIST, "".join(split_lines).encode())
    (folder / UNFINISHED).unlink()


def begin(folder: Path, what: str) -> None:
    """Make the folders and note there which set is being drawn, unless it was begun before. Raises FolderTaken."""
    note = folder / UNFINISHED
    if folder.exists() and not folder.is_dir():
        raise FolderTaken(f"{folder} is a file; name a folder")
    if note.exists():
        if (begun := note.read_text(encoding="utf-8").strip()) != what:
            ways_out = f"draw with {begun} to finish it, or delete {IMAGE_FOLDER} and {UNFINISHED}"
            raise FolderTaken(f"{folder} holds another set, not finished: {ways_out}")
        for rest in (folder / IMAGE_FOLDER).glob(".*"):  # files that a killed process had not yet renamed
            rest.unlink()
    for name in (IMAGE_FOLDER, ATTRIBUTE_LIST, SPLIT_LIST):
        if not note.exists() and (folder / name).exists():
            raise FolderTaken(f"{folder} holds {name} already; name a folder without")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(note, f"{what}\n".encode())
    (folder / IMAGE_FOLDER).mkdir(exist_ok=True)


def in_processes(work: Callable, chunks: Sequence, jobs: int) -> Iterator:
    """Yield work(chunk) for all chunks in order, from `jobs` processes; 0 jobs: in this process."""
    if not jobs:
        yield from map(work, chunks)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:  # a fork of a process with threads may hang
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, so only this process reacts to Ctrl-C
        try:
            drawn = pool.map(work, chunks)  # starts the processes
        finally:
            signal.signal(signal.SIGINT, before)
        yield from drawn


def draw_chunk(folder: Path, seed: int, numbers: Sequence[int]) -> list[str]:
    """Draw the images with these numbers, unless they exist; return their lines of the attribute list."""
    lines = []
    for number in numbers:
        face = factors(seed, number)
        path = folder / file_name(number)
        if not path.exists():
            draw_face(face).save(content := io.BytesIO(), "JPEG", quality=QUALITY)
            write_whole(path, content.getvalue())
        values = " ".join(" 1" if true else "-1" for true in attributes(face).values())
        lines.append(f"{path.name} {values}\n")
    return lines


def file_name(number: int) -> str:
    """The file name of image `number`, from 1 on."""
    return f"{number:06}.jpg"


def splits(images: int) -> tuple[int, int, int]:
    """How many images train, validate and test: in CelebA's proportions, but at least one in each."""
    validation, test = (max(1, round(images * part / sum(SPLITS))) for part in SPLITS[1:])
    return images - validation - test, validation, test


# --- the command line -------------------------------------------------------------------------------------------------
def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("draw_faces", __doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to draw into")
    parser.add_argument("--images", type=whole(3, 999_999), required=True, metavar="N", help="images to draw")
    seed = "random seed; the same seed draws the same faces [default 0]"
    parser.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, metavar="S", help=seed)
    return parser.parse_args(argv)


def main(asked: argparse.Namespace) -> int:
    """Draw as the command line says; return the exit code."""

    def work():
        try:
            draw(asked.folder, asked.images, asked.seed, jobs=os.cpu_count() or 1)
        except BrokenProcessPool:
            raise console.Problem("a process was killed; the same command goes on from here") from None
        train, validation, test = splits(asked.images)
        print(f"{asked.folder}: {train:,} faces to train on, {validation:,} to validate with, {test:,} to test with")

    return console.run("draw_faces", work, "the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main(read_command_line()))
