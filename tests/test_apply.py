"""experiments/apply.py: scores, order and reconstructions of a user's images, compared with Pillow and NumPy."""

import csv

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

import main
from experiments import apply
from tests.shared import contents, opened
from tests.tiny import TINY, NumpyVAE
from utils import checkpoints, data, runs
from utils.dataset import DataError, Dataset
from utils.settings import from_params

SHAPE = (8, 8, 1)
TESTS = np.random.default_rng(5).integers(0, 80, size=(30, *SHAPE), dtype=np.uint8)  # dark


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """A run with random weights whose test images are TESTS, and the same VAE in NumPy."""
    monkeypatch.setattr(data, "prepare", lambda *_: Dataset("a test", *[TESTS, np.arange(30)] * 2, "nowhere"))

    def make(shape=SHAPE, **overrides):
        s = from_params(**TINY | {"output_dir": str(tmp_path), "run_name": "run", "dataset": "mnist"} | overrides)
        vae, rng = main.build_vae(s, shape), np.random.default_rng(2)
        for weight in vae.weights:
            weight.assign(rng.normal(0, 0.3, weight.shape))
        folder = runs.create(s, "CPU", shape)
        checkpoints.save(checkpoints.checkpoint(vae), folder, 7)
        return folder, NumpyVAE(s, [weight.numpy() for weight in vae.weights])

    return make


@pytest.fixture
def mine(tmp_path):
    """A folder with three images in two sizes and modes, one of them in a subfolder, a text and a broken image."""
    place, rng = tmp_path / "mine", np.random.default_rng(1)
    (place / "more").mkdir(parents=True)
    Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(place / "colours.png")
    Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(place / "b.png")
    Image.fromarray(rng.integers(9, size=(8, 8), dtype=np.uint8)).save(place / "more" / "b.png")
    (place / "more" / "notes.txt").write_text("no image")
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    return place


def prepared(path):
    image = Image.open(path).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    return np.asarray(image, float).reshape(1, 64) / 255


def run_on(folder, *words):
    try:
        return apply.main(apply.read_command_line([str(folder), *map(str, words)]))
    except SystemExit as refused:
        return refused.code


def lines_of(folder):
    return [*csv.DictReader((folder / "applied" / "scores.csv").read_text().splitlines())]


def test_the_scores_are_those_of_numpy_the_least_likely_first(make_run, mine, capsys):
    folder, same = make_run(autoencoder=True, loss="mse")  # without noise
    assert run_on(folder, mine) == 0
    paths = [mine / "colours.png", mine / "b.png", mine / "more" / "b.png"]
    wanted = {str(path): same.terms(prepared(path), None)[0].item() for path in paths}
    codes = {str(path): same.encode(prepared(path))[0][0] for path in paths}
    tests = same.terms(TESTS.reshape(30, 64) / 255, None)[0]
    *found, broken = lines_of(folder)
    assert [line["file"] for line in found] == sorted(wanted, key=wanted.get, reverse=True)
    for place, line in enumerate(found, 1):
        loss = wanted[line["file"]]
        assert line["place"] == str(place)
        assert float(line["score"]) == pytest.approx(-loss, rel=1e-5)
        assert float(line["reconstruction"]) == pytest.approx(loss, rel=1e-5)
        assert (float(line["kl"]), line["problem"]) == (0, "")
        assert float(line["standard_error"]) < 1e-5
        assert float(line["lower_tests"]) == (-tests < -loss).mean()
        z = [float(line[f"z_mean_{number}"]) for number in (1, 2)]
        np.testing.assert_allclose(z, codes[line["file"]], atol=1e-5)
        name = f"{place:04}_{line['file'].rpartition('/')[2]}"
        drawn = opened(folder / "applied" / "reconstructions" / name)
        np.testing.assert_allclose(drawn.reshape(64), 255 * expit(same.decode(np.array(z))), atol=0.51)
    assert (broken["place"], broken["file"], broken["score"]) == ("", str(mine / "broken.png"), "")
    assert "not an image" in broken["problem"]
    told = capsys.readouterr().out
    assert "left out   1 x not an image (e.g. " in told
    assert f"note       1 that cannot be read, at the end of scores.csv: {mine / 'broken.png'}" in told
    assert "3 images by -loss in nats, the least likely first" in told
    assert opened(folder / "applied" / "applied.png").std() > 10


def test_a_score_is_the_mean_over_draws_and_depends_on_no_other_image(make_run, tmp_path):
    folder, same = make_run(binarize="dynamic")
    place = tmp_path / "alike"
    place.mkdir()
    image = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    for number in range(5):
        Image.fromarray(image).save(place / f"{number}.png")
    Image.fromarray(image[::-1]).save(place / "2_other.png")
    assert run_on(folder, place) == 0
    scores = {line["file"].rpartition("/")[2]: float(line["score"]) for line in lines_of(folder)}
    other = scores.pop("2_other.png")
    (score,) = set(scores.values())
    assert score != other
    assert run_on(folder, place / "3.png") == 0
    (line,) = lines_of(folder)
    assert float(line["score"]) == score
    rng = np.random.default_rng(1)
    pixels = (rng.random((4_000, 64)) < image.reshape(64) / 255).astype(float)
    loss, kl = same.terms(pixels, rng.standard_normal((4_000, 2)))
    elbo = -(loss + kl.sum(axis=1))
    assert float(line["standard_error"]) == pytest.approx(elbo.std() / 4, rel=0.6)
    assert abs(score - elbo.mean()) < 5 * elbo.std() / 4


def test_files_may_be_named_one_by_one_and_are_taken_once(make_run, mine):
    folder, _ = make_run()
    assert run_on(folder, mine / "b.png", mine / "more", mine / "b.png") == 0
    assert {line["file"] for line in lines_of(folder)} == {str(mine / "b.png"), str(mine / "more" / "b.png")}


def test_inverted_images_are_those_with_light_and_dark_exchanged(make_run, mine, tmp_path, capsys):
    folder, _ = make_run(autoencoder=True)
    path = tmp_path / "other.png"
    Image.fromarray(255 - opened(mine / "more" / "b.png")).save(path)
    found = []
    for words, told in (((path,), "--invert turns dark into light"), ((path, "--invert"), None)):
        assert run_on(folder, *words) == 0
        said = capsys.readouterr().out
        assert ("note       the mean brightness is" in said) == bool(told)
        assert told is None or told in said
        found.append(float(lines_of(folder)[0]["score"]))
    assert run_on(folder, mine / "more" / "b.png") == 0
    assert found[0] != found[1] == float(lines_of(folder)[0]["score"])


def test_of_many_images_the_first_and_the_last_are_drawn_and_some_written(make_run, tmp_path, monkeypatch):
    folder, _ = make_run()
    place, rng = tmp_path / "many", np.random.default_rng(3)
    place.mkdir()
    for number in range(40):
        Image.fromarray(rng.integers(1 + 6 * number, size=(8, 8), dtype=np.uint8)).save(place / f"{number}.png")
    monkeypatch.setattr(apply, "READ_AT_ONCE", 7)
    monkeypatch.setattr(apply, "MOST_WRITTEN", 10)
    figures = []
    monkeypatch.setattr(apply.pictures, "save_figure", lambda path, figure: figures.append(figure))
    assert run_on(folder, place) == 0
    lines = lines_of(folder)
    scores = [float(line["score"]) for line in lines]
    assert scores == sorted(scores)
    assert len(set(scores)) == 40
    (histogram, *panels) = figures[0].axes
    low, high = histogram.get_xlim()
    assert low < scores[0] < scores[-1] < high
    shown = [at for at in (*range(20), *range(30, 40))]
    titles = [f"{at + 1}: {scores[at]:,.1f}\n{lines[at]['file'].rpartition('/')[2]}" for at in shown]
    assert [panel.get_title() for panel in panels] == titles
    for panel, at in zip(panels, shown, strict=True):
        (image,) = panel.get_images()
        pixels = image.get_array()[2:10, 2:10].reshape(1, 64) / 255  # the upper image, inside its frame
        np.testing.assert_array_equal(pixels, prepared(lines[at]["file"]))
    written = sorted(path.name for path in (folder / "applied" / "reconstructions").iterdir())
    assert written == [f"{n:04}_{line['file'].rpartition('/')[2]}" for n, line in enumerate(lines[:10], 1)]


def test_without_the_runs_data_there_is_no_comparison_and_a_line(make_run, mine, monkeypatch, capsys):
    folder, _ = make_run()

    def gone(*_):
        raise DataError("no source")

    monkeypatch.setattr(data, "prepare", gone)
    assert run_on(folder, mine) == 0
    assert "note       no comparison with test images: no source\n" in capsys.readouterr().out
    assert {line["lower_tests"] for line in lines_of(folder)} == {""}


def test_black_and_white_is_drawn_where_the_run_is_tested_so(make_run, mine, capsys):
    folder, _ = make_run(binarize="dynamic")
    assert run_on(folder, mine) == 0
    assert capsys.readouterr().out.count("note       grey pixels are drawn black or white") == 1


def test_an_older_result_is_replaced_and_nothing_else(make_run, mine, capsys):
    folder, _ = make_run()
    for words in ((mine,), (mine / "b.png",)):
        assert run_on(folder, *words) == 0
    assert len(lines_of(folder)) == 1
    assert len([*(folder / "applied" / "reconstructions").iterdir()]) == 1
    for name in ("thesis.doc", "reconstructions/thesis.png"):
        (folder / "applied" / name).write_text("all of it")
        before = contents(folder)
        assert run_on(folder, mine) == 2
        assert f"this command did not write {name} in it" in capsys.readouterr().err
        assert contents(folder) == before
        (folder / "applied" / name).unlink()
    (folder / "applied" / "scores.csv").unlink()
    for place, told in (
        (folder / "applied", "would be replaced"), (mine / "b.png", "overlaps IMAGE"),
        (mine, "overlaps IMAGE"), (mine / "new", "overlaps IMAGE"),
        (folder / "params.json" / "x", "is not a folder"),
    ):  # fmt: skip
        assert run_on(folder, mine, "--to", place) == 2
        assert told in capsys.readouterr().err


def test_a_mistake_is_one_line(make_run, mine, tmp_path, capsys):
    folder, _ = make_run()
    other, _ = make_run((4, 2, 2), run_name="two")
    text, empty = mine / "more" / "notes.txt", tmp_path / "empty"
    empty.mkdir()
    for run, words, told in (
        (folder, [], "the following arguments are required: IMAGE"), (folder, ["x.png"], "IMAGE x.png: no such file"),
        (folder, [text], f"IMAGE {text}: no image there; there is 1 x not an image"),
        (folder, [empty], f"IMAGE {empty}: no image there; there is nothing"),
        (folder, [mine / "broken.png"], f"none of the images can be read; the first: {mine / 'broken.png'}"),
        (other, [mine], "two has images of 2 channels"),
    ):  # fmt: skip
        assert run_on(run, *words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"apply: error: {told}")
        assert error.count("\n") == 1
    assert not (folder / "applied").exists()
    assert run_on(folder, "--help") == 0
    assert "python -m experiments.apply mnist-ce-z20 my_digits/" in capsys.readouterr().out
