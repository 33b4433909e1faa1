"""experiments/attribute_walk.py on linear networks and planted attributes, where NumPy can compute every number."""

import json
import re
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

import main
from experiments import attribute_walk, classifier, figures, load
from tests.shared import set_xla
from utils import checkpoints, data, runs
from utils.dataset import TEST_BINARIZATION_KEY, binarize
from utils.settings import SettingsError, from_params

LINEAR = {
    "architecture": "mlp", "encoder_layers": (), "decoder_layers": (), "noise_dim": 1, "autoencoder": False,
    "prior": "standard", "loss": "ce", "decoder_scale": "fixed", "binarize": "none", "dataset": "mnist", "labels": (),
    "held_out": 0, "seed": 3, "run_name": "linear",
}  # fmt: skip
NAMES = ("Coin", "Bright_Corner", "Rare", "Half", "Toss")
STEPS = np.array([0, 0.5, 1, 1.5, 2])


class Stored:
    """A stand-in for images on a disk: it only has their number, shape, slices and arrays of row numbers."""

    def __init__(self, images, most=None):
        self.images, self.shape, self.most = images, images.shape, most or len(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        assert isinstance(rows, slice) or np.issubdtype(rows.dtype, np.integer)
        part = self.images[rows]
        assert len(part) <= self.most
        return part

    def __array__(self, *_, **__):
        pytest.fail("all images were read at once")

    __iter__ = __array__


class Attributed(NamedTuple):
    """A data set as utils.data gives it."""

    title: str
    train_images: Any
    train_labels: np.ndarray
    test_images: Any
    test_labels: np.ndarray
    source: str = "a test"
    attributes: tuple[str, ...] = ()
    train_attributes: np.ndarray | None = None
    test_attributes: np.ndarray | None = None
    label_names: tuple[str, ...] = ()


def with_bright_corners(count, shape, seed):
    """Images, some with a bright corner, and attributes (count, 5) that depend on the corner more or less."""
    rng = np.random.default_rng(seed)
    bright, coin, toss = rng.random((3, count)) < [[0.6], [0.5], [0.5]]
    images = rng.integers(0, 256, (count, *shape))
    images[:, :2, :2] = images[:, :2, :2] * 0.6 + 0.4 * 255 * bright[:, None, None, None]
    half = np.where(rng.random(count) < 0.25, ~bright, bright)
    rare = np.arange(count) % 30 == 7
    return np.uint8(images), np.stack([coin, bright, rare, half, toss], axis=1)


def faces(shape=(4, 4, 1), train=240, test=90):
    (x, has), (x_test, test_has) = with_bright_corners(train, shape, 0), with_bright_corners(test, shape, 1)
    labels = np.zeros(train, np.uint8), np.zeros(test, np.uint8)
    return Attributed("Faces", Stored(x), labels[0], Stored(x_test), labels[1], "a test", NAMES, has, test_has)


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Make a run on a data set: z_mean is the brightness of all pixels, and z is decoded to sigmoid(8 z - 4)."""
    set_xla(monkeypatch)

    def make(dataset, **overrides):
        shape = dataset.train_images.shape[1:]
        pixels = int(np.prod(shape))
        settings = from_params(**LINEAR | {"latent_dim": pixels, "output_dir": str(tmp_path)} | overrides)
        vae = main.build_vae(settings, shape)
        vae.encoder.get_layer("posterior").set_weights([np.eye(pixels, 2 * pixels), np.zeros(2 * pixels)])
        of_noise = np.full((1, pixels), 100)  # a noise latent that is not 0 spoils every pixel
        kernel = np.vstack([8 * np.eye(pixels), of_noise])
        vae.decoder.get_layer("pixels").set_weights([kernel, np.full(pixels, -4)])

        def prepare(settings, say, folder):
            if settings.binarize == "none":
                return dataset
            binary = binarize(dataset.test_images.images, TEST_BINARIZATION_KEY)
            return dataset._replace(test_images=Stored(binary))

        monkeypatch.setattr(data, "prepare", prepare)
        folder = runs.create(settings, "CPU", shape)
        checkpoints.save(checkpoints.checkpoint(vae), folder, 7)
        return folder

    return make


@pytest.fixture
def seen_by_judges(monkeypatch):
    """Replace the judge: an image whose corner is brighter than 0.5 "has it". List the judge's inputs."""
    seen = []

    def judge(images, labels, seed, epochs, rate):
        seen.append((images, labels))
        shape = images.shape[1:]
        corner = np.zeros(shape)
        corner[:2, :2] = 1
        model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(2)])
        kernel = np.stack([0 * corner, corner], axis=-1).reshape(-1, 2)
        model.layers[-1].set_weights([kernel, np.array([corner.sum() / 2, 0])])
        return model

    monkeypatch.setattr(classifier, "train_classifier", judge)
    return seen


def ask(folder, *names):
    return attribute_walk.main(
        attribute_walk.read_command_line([str(folder), *(["--attribute", *names] if names else [])])
    )


def read(folder):
    return json.loads((folder / "attribute_walk.json").read_text(), parse_constant=pytest.fail)


def difference(z, has):
    return z[has].mean(axis=0) - z[~has].mean(axis=0)


def chance_to_be_further(score, has):
    """The definition of an AUC: the share of pairs in which the one that has it scores higher; a tie counts half."""
    ahead = np.subtract.outer(score[has], score[~has])
    return ((ahead > 0) + (ahead == 0) / 2).mean()


def decoded(z):
    return expit(8 * z - 4)


def has_bright_corner(brightness, shape):
    return brightness.reshape(-1, *shape)[:, :2, :2].mean(axis=(1, 2, 3)) > 0.5


# --- the numbers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 6, 3)])
@pytest.mark.parametrize("pixels", ["none", "dynamic"])
def test_vector_auc_and_walks_are_what_numpy_says(shape, pixels, make_run, seen_by_judges, monkeypatch):
    dataset = faces(shape)
    folder = make_run(dataset, binarize=pixels)
    draw_images, drawn = figures.draw_images, []
    monkeypatch.setattr(figures, "draw_images", lambda *asked: drawn.append(asked[1:3]) or draw_images(*asked))
    assert ask(folder, "bright_corner") == 0
    (found,) = read(folder)["walks"]

    grey, grey_test = dataset.train_images.images, dataset.test_images.images
    x, x_test = grey, grey_test
    if pixels == "dynamic":
        x = binarize(grey, (3, attribute_walk.TRAINING_PIXELS, 0))
        x_test = binarize(grey_test, TEST_BINARIZATION_KEY)
    z, z_test = x.reshape(len(x), -1) / 255, x_test.reshape(len(x_test), -1) / 255
    has, test_has = dataset.train_attributes[:, 1], dataset.test_attributes[:, 1]
    vector = difference(z, has)
    np.testing.assert_allclose(found["vector"], vector, atol=1e-6)
    assert found["auc"] == pytest.approx(chance_to_be_further(z_test @ vector, test_has))
    assert (found["training_images_with"], found["training_images_without"]) == (has.sum(), 240 - has.sum())

    assert [step["t"] for step in found["walk"]] == STEPS.tolist()
    walked = [decoded(z_test[~test_has] + t * vector) for t in STEPS]
    shares = [has_bright_corner(brightness, shape).mean() for brightness in walked]
    assert shares[0] < 0.3 < 0.6 < shares[-1]
    np.testing.assert_allclose([step["judged_to_have_it"] for step in found["walk"]], shares, atol=1e-9)
    ceiling = has_bright_corner(decoded(z_test[test_has]), shape).mean()
    assert found["ceiling"] == pytest.approx(ceiling)
    assert found["brightness_change"] == pytest.approx(np.abs(walked[2] - walked[0]).mean(), rel=1e-4)

    ((images, labels),) = seen_by_judges  # grey images, whatever the run was trained on
    np.testing.assert_array_equal(images, grey)
    np.testing.assert_array_equal(labels, has)
    right = (has_bright_corner(grey_test / 255, shape) == test_has).mean()
    assert found["classifier_accuracy"] == pytest.approx(right)
    assert found["larger_class"] == pytest.approx(test_has.mean())

    for (images, columns), kind, sign in zip(drawn, (~test_has, test_has), (1, -1), strict=True):
        rows = np.flatnonzero(kind)[np.arange(8) * (kind.sum() - 1) // 7]
        expected = [z_test[rows], *(decoded(z_test[rows] + sign * t * vector) for t in STEPS)]
        assert columns == 6
        np.testing.assert_allclose(images, np.stack(expected, axis=1).reshape(48, *shape), atol=1e-5)


def test_the_best_told_attributes_are_walked_along_and_one_too_rare_is_left_out(make_run, seen_by_judges, capsys):
    dataset = faces()
    folder = make_run(dataset)
    assert ask(folder) == 0
    numbers = read(folder)
    z, z_test = (part.images.reshape(len(part), -1) / 255 for part in (dataset.train_images, dataset.test_images))
    aucs = {
        name: chance_to_be_further(z_test @ difference(z, has), test_has)
        for name, has, test_has in zip(NAMES, dataset.train_attributes.T, dataset.test_attributes.T, strict=True)
    } | {"Rare": None}
    assert numbers["auc"] == pytest.approx(aucs)
    best = sorted((name for name in NAMES if name != "Rare"), key=lambda name: -aucs[name])[:3]
    assert best[:2] == ["Bright_Corner", "Half"]
    assert [found["attribute"] for found in numbers["walks"]] == best
    assert len(seen_by_judges) == 3

    shown = capsys.readouterr().out
    for found in numbers["walks"]:
        (row,) = re.findall(rf"^  {found['attribute']} +(.*)$", shown, re.MULTILINE)
        shares = [*(step["judged_to_have_it"] for step in found["walk"]), found["ceiling"]]
        expected = [
            f"{found['auc']:.3f}", f"{found['classifier_accuracy']:.1%}", f"({found['larger_class']:.1%})",
            *(f"{share:.1%}" for share in shares), f"{found['brightness_change']:.3f}",
        ]  # fmt: skip
        assert row.split() == expected
        with Image.open(folder / f"attribute_walk_{found['attribute']}.png") as picture:
            assert picture.width > 1_000
    assert max(map(len, attribute_walk.table(numbers).splitlines())) <= 120
    pictures = ", ".join(f"attribute_walk_{name}.png" for name in best)
    assert shown.endswith(f"look at    {folder}: {pictures}, attribute_walk.json\n")


def test_of_many_images_some_at_even_distances_are_read_a_few_at_a_time(make_run, seen_by_judges, monkeypatch):
    dataset = faces(train=2_600, test=1_300)
    dataset.train_images.most = dataset.test_images.most = 1_000
    folder = make_run(dataset)
    for name, most in (("MOST_TRAINING", 1_300), ("MOST_TEST", 1_100), ("MOST_WALKED", 70)):
        monkeypatch.setattr(attribute_walk, name, most)
    monkeypatch.setattr(attribute_walk, "MOST_NUMBERS", 650 * 16)
    assert ask(folder, "Coin") == 0
    numbers = read(folder)
    (found,) = numbers["walks"]
    rows = np.array([place * 2_599 // 1_299 for place in range(1_300)])  # evenly from the first to the last
    z, has = dataset.train_images.images[rows].reshape(1_300, -1) / 255, dataset.train_attributes[rows, 0]
    np.testing.assert_allclose(found["vector"], difference(z, has), atol=1e-6)
    assert numbers["training_images"] == 1_300
    assert numbers["images"].startswith("1,100 test images")
    assert (found["walked_images"], found["having_images"]) == (70, 70)
    seen = rows[[place * 1_299 // 649 for place in range(650)]]
    np.testing.assert_array_equal(seen_by_judges[0][0], dataset.train_images.images[seen])
    np.testing.assert_array_equal(seen_by_judges[0][1], dataset.train_attributes[seen, 0])


def test_of_binarised_images_no_two_batches_share_a_draw(make_run):
    alike = np.full((2_000, 4, 4, 1), 128, np.uint8)
    folder = make_run(faces(), binarize="dynamic")
    z = attribute_walk.encode_rows(load.Run(folder).vae, alike, np.arange(2_000), (0, 1))
    assert set(np.unique(z)) == {0, 1}
    assert (z[:1_000] != z[1_000:]).any()


def test_a_walk_goes_along_the_vector_in_both_directions():
    z, vector = np.array([[1.0, 2], [3, 4]]), np.array([10.0, -1])
    np.testing.assert_array_equal(
        attribute_walk.walk(z, vector, (0, 0.5, -1)), [z, [[6, 1.5], [8, 3.5]], [[-9, 3], [-7, 5]]]
    )


def test_labels_are_attributes_where_there_are_no_others(make_run):
    """The digits are bars in three columns: z separates them, and a trained classifier sees one become another."""
    rng = np.random.default_rng(0)

    def digits(count):
        labels = rng.choice(np.array([1, 4, 7], np.uint8), count)
        images = rng.integers(0, 60, (count, 12, 12, 1))
        for label, column in ((1, 1), (4, 5), (7, 9)):
            images[labels == label, :, column : column + 2] += 180
        return Stored(np.uint8(images)), labels

    dataset = Attributed("Digits", *digits(3_000), *digits(300))
    found = attribute_walk.find_attributes(dataset)
    assert found.names == ("1", "4", "7")
    np.testing.assert_array_equal(found.train.argmax(axis=1) * 3 + 1, dataset.train_labels)
    np.testing.assert_array_equal(found.test.sum(axis=1), 1)
    folder = make_run(dataset)
    assert ask(folder, "7") == 0
    (walked,) = read(folder)["walks"]
    assert walked["auc"] == 1
    assert walked["classifier_accuracy"] > 0.98
    assert walked["larger_class"] == pytest.approx((dataset.test_labels != 7).mean())
    share = {step["t"]: step["judged_to_have_it"] for step in walked["walk"]}
    assert share[0] < 0.05 < 0.5 < share[2]
    assert walked["ceiling"] > 0.95


# --- what it refuses --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["Half", "bright_conner"], "'bright_conner' is not allowed; one of Coin, Bright_Corner, Rare, Half, Toss is "
                                    "(did you mean 'Bright_Corner'?)"),
        (["7"], "'7' is not allowed; one of Coin, Bright_Corner, Rare, Half, Toss is"),
        (["rare"], "'Rare' is not allowed; 8 of 240 training images have it, and at least 10 are needed"),
    ],
)  # fmt: skip
def test_an_attribute_that_cannot_be_had_is_one_line(names, told, make_run, capsys):
    folder = make_run(faces())
    assert ask(folder, *names) == 2
    assert capsys.readouterr().err == f"attribute_walk: error: attribute: {told}\n"
    assert not list(folder.glob("attribute_walk*"))


def test_too_few_without_it_and_too_few_test_images_are_told():
    nine = np.arange(50) < 9
    assert attribute_walk.too_few(nine, "test") == "9 of 50 test images have it, and at least 10 are needed"
    assert attribute_walk.too_few(~nine, "test") == "9 of 50 test images do not have it, and at least 10 are needed"
    assert attribute_walk.too_few(np.arange(50) < 10, "test") is None
    assert attribute_walk.too_few(np.arange(50) < 40, "test") is None


def test_where_test_images_are_too_few_nothing_is_left(make_run, capsys):
    folder = make_run(faces(test=12))
    assert ask(folder, "half") == 2
    assert "'Half' is not allowed; " in (told := capsys.readouterr().err)
    assert "of 12 test images" in told
    assert ask(folder) == 2
    told = "attribute: none of Coin, Bright_Corner, Rare, Half, Toss has 10 images with it and 10 without"
    assert capsys.readouterr().err == f"attribute_walk: error: {told}\n"


def test_one_label_tells_nothing_apart():
    images, labels = np.zeros((20, 4, 4, 1), np.uint8), np.full(20, 5, np.uint8)
    with pytest.raises(SettingsError, match="attribute: Fives has none, and only one label, 5: nothing to tell"):
        attribute_walk.find_attributes(Attributed("Fives", images, labels, images, labels))


def test_names_are_found_in_any_case_and_once():
    assert attribute_walk.places(["half", "COIN", "Half"], NAMES) == [3, 0]


def test_a_mistake_on_the_command_line_is_one_line(capsys):
    for argv, told in (
        ([], "the following arguments are required: RUN"),
        (["x", "--attribute"], "argument --attribute: expected at least one argument"),
        (["x", "--attributes", "7"], "unrecognized arguments: --attributes 7"),
    ):
        with pytest.raises(SystemExit) as stopped:
            attribute_walk.read_command_line(argv)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == f"attribute_walk: error: {told}\n"


def test_a_run_that_is_not_there_and_a_full_disk_are_named(make_run, seen_by_judges, monkeypatch, tmp_path, capsys):
    folder = make_run(faces())
    with pytest.raises(SystemExit) as stopped:
        attribute_walk.read_command_line(["nothing", "--output-dir", str(tmp_path)])
    assert stopped.value.code == 2
    told = f"attribute_walk: error: RUN nothing: no such run in {tmp_path}; there is linear\n"
    assert capsys.readouterr().err == told

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(attribute_walk, "write_json", full)
    assert ask(folder, "half") == 1
    told = f"attribute_walk: error: {folder / 'attribute_walk.json'}: No space left on device\n"
    assert capsys.readouterr().err.endswith(told)


def test_the_name_of_a_picture_is_a_plain_one():
    assert attribute_walk.picture_name("5_o_Clock_Shadow") == "attribute_walk_5_o_Clock_Shadow.png"
    assert attribute_walk.picture_name("../a b") == "attribute_walk____a_b.png"
