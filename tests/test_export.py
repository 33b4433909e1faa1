"""experiments/export.py: what it writes is read in a process that has no code of this repository."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import logit

import main
from experiments import export
from tests.shared import REPOSITORY, contents, users_environment
from utils import chance, checkpoints, runs
from utils.settings import BEFORE, from_params
from utils.start import tf

SHAPE = (4, 3, 2)  # all sides differ, so that mixing them up is noticed
TINY = BEFORE | {
    "encoder_layers": (8,), "decoder_layers": (), "activation": "silu", "latent_dim": 3,
    "noise_dim": 0, "autoencoder": False, "prior": "standard", "prior_components": 2, "prior_layers": 3,
    "prior_units": 8, "loss": "ce", "decoder_scale": "fixed", "binarize": "dynamic", "dataset": "mnist", "labels": (),
    "held_out": 0, "seed": 3,
}  # fmt: skip
RUNS = {
    "standard": {"noise_dim": 1}, "mixture": {"prior": "mixture"}, "vampprior": {"prior": "vampprior"},
    "realnvp": {"prior": "realnvp", "decoder_layers": (8,)}, "plain": {"autoencoder": True},
    "resnet": {"architecture": "resnet", "channels": (3,), "loss": "logistic",
               "decoder_scale": "learned", "binarize": "none"},
}  # fmt: skip
X = np.random.default_rng(0).random((5, *SHAPE), np.float32)
DRAWS = 4_000
ERRORS = 5 / np.sqrt(DRAWS)  # five standard errors of a mean of numbers with variance 1

READER = """
import importlib.util, json, os, sys, warnings
import keras
import numpy as np
import tensorflow as tf

warnings.simplefilter("error")
repository, draws, *folders = sys.argv[1:]
for name in ("main", "params", "utils", "experiments"):
    assert importlib.util.find_spec(name) is None, name

for folder in folders:
    os.chdir(folder)
    x, z = (np.load(f"../{name}.npy") for name in "xz")
    encoder, decoder = (keras.models.load_model(f"{name}.keras") for name in ("encoder", "decoder"))
    model = tf.saved_model.load("saved_model")
    signatures = model.signatures

    def sample(count, seed):
        return signatures["sample"](count=tf.constant(count), seed=tf.constant(seed, tf.int64))["brightness"]

    found = {"names": sorted(signatures), "keras": [*encoder(x)], "logits": decoder(z)}
    found |= signatures["encode"](x=tf.constant(x)) | signatures["decode"](z=tf.constant(z))
    found["first"] = signatures["decode"](z=tf.constant(z[:1]))["brightness"]
    if "sample" in signatures:
        found |= {"draws": sample(int(draws), 3), "again": sample(int(draws), 3), "other": sample(7, 2**40)}

    namespace = {}
    exec("\\n".join(json.load(open("export.json"))["load"]), namespace)
    found |= {name: namespace[name] for name in ("images", "reconstructions")}
    for name in signatures:
        library = signatures[name].graph.as_graph_def().library
        assert not any(function.attr["_XlaMustCompile"].b for function in library.function), name
    np.savez("../found.npz", **found)

files = {str(getattr(module, "__file__", None)) for module in sys.modules.values()}
assert not [file for file in files if file.startswith(repository + os.sep)]
"""


def make_run(parent, name="tiny", seed=5, step=7, **overrides):
    """A run with random weights, as training saves it: its folder, VAE and settings."""
    settings = from_params(**TINY | {"output_dir": str(parent), "run_name": name} | overrides)
    vae = main.build_vae(settings, SHAPE)
    rng = np.random.default_rng(seed)
    for weight in vae.weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    folder = runs.create(settings, "CPU", SHAPE)
    checkpoints.save(checkpoints.checkpoint(vae), folder, step)
    return folder, vae, settings


def ask(folder, *more):
    return export.main(export.read_command_line([str(folder), *map(str, more)]))


# --- what another program reads ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The runs of RUNS, and what a process that has only their exports found in them."""
    home = tmp_path_factory.mktemp("exported")
    made = {}
    for name, overrides in RUNS.items():
        folder, vae, settings = make_run(home / "runs", name, **overrides)
        if name == "mixture":  # components far apart, and a decoder whose first logits are z itself
            for weight, value in zip(
                vae.prior.weights, ([[-4, 0, 2], [4, 1, -2]], np.full((2, 3), np.log(0.1)), np.log([1, 3])), strict=True
            ):
                weight.assign(np.float32(value))
            vae.decoder.set_weights([np.eye(3, 24), np.zeros(24)])
            checkpoints.save(checkpoints.checkpoint(vae), folder, 8)
        z = np.random.default_rng(1).standard_normal((5, vae.decoder.input_shape[1]), np.float32)
        lines = []
        export.export(folder, say=lines.append)
        np.save(folder / "x.npy", X)
        np.save(folder / "z.npy", z)
        made[name] = SimpleNamespace(folder=folder, vae=vae, settings=settings, z=z, lines=lines)

    home = home / "elsewhere"
    home.mkdir()
    places = [run.folder / "export" for run in made.values()]
    command = [sys.executable, "-I", "-c", READER, str(REPOSITORY), str(DRAWS), *map(str, places)]
    reader = subprocess.run(command, cwd=home, env=users_environment(), capture_output=True, text=True, timeout=300)
    assert reader.returncode == 0, reader.stderr
    for run in made.values():
        run.found = dict(np.load(run.folder / "found.npz"))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_networks_compute_what_they_did_without_any_code_of_this_repository(exported, name):
    run = exported[name]
    found, posterior = run.found, [part.numpy() for part in run.vae.encoder(X)]
    logits = run.vae.decoder(run.z).numpy()
    assert np.ptp(logits) > 1  # so that closeness below is no accident
    np.testing.assert_allclose(found["keras"], posterior, atol=1e-5)
    np.testing.assert_allclose([found["z_mean"], found["z_log_std"]], posterior, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(found["brightness"], 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(found["first"], found["brightness"][:1], atol=1e-6)  # in a batch of another size


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "plain"])
def test_samples_are_the_priors_own_draws_and_the_same_for_the_same_seed(exported, name):
    run = exported[name]
    found = run.found
    assert found["draws"].shape == (DRAWS, *SHAPE)
    assert found["other"].shape == (7, *SHAPE)
    np.testing.assert_array_equal(found["draws"], found["again"])
    assert np.abs(found["other"] - found["draws"][:7]).max() > 0.01
    key = chance.random_key(3, chance.GRID_LATENTS, 0)  # as for samples_*.png, if the run's seed is 3
    drawn = main.decode(run.vae, main.sample_prior(run.vae, DRAWS, key))
    np.testing.assert_allclose(found["draws"], drawn, atol=1e-5)


@pytest.mark.slow
def test_samples_of_the_standard_prior_have_its_mean_and_covariance(exported):
    run = exported["standard"]
    kernel, bias = (np.float64(weight) for weight in run.vae.decoder.get_weights())
    logits = logit(np.float64(run.found["draws"])).reshape(DRAWS, -1)
    z = np.linalg.lstsq(kernel.T, (logits - bias).T)[0].T  # the decoder is linear
    np.testing.assert_allclose(z @ kernel + bias, logits, atol=1e-3)
    assert z.shape == (DRAWS, 4)  # three latents and the noise
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=ERRORS)
    np.testing.assert_allclose(np.cov(z.T), np.eye(4), atol=1.5 * ERRORS)


@pytest.mark.slow
def test_samples_of_a_learned_mixture_come_from_its_components_by_their_shares(exported):
    z = logit(exported["mixture"].found["draws"]).reshape(DRAWS, -1)[:, :3]
    second = z[:, 0] > 0
    assert second.mean() == pytest.approx(0.75, abs=ERRORS / 2)
    for part, mean in ((z[~second], [-4, 0, 2]), (z[second], [4, 1, -2])):
        np.testing.assert_allclose(part.mean(axis=0), mean, atol=0.1 * 2 * ERRORS)
        np.testing.assert_allclose(part.std(axis=0), 0.1, atol=0.1 * 2 * ERRORS)


@pytest.mark.slow
def test_a_plain_autoencoder_has_no_samples_and_says_so(exported):
    assert {name: list(run.found["names"]) for name, run in exported.items()} == {
        name: ["decode", "encode", "encode_uint8", "sample"][: 4 - (name == "plain")] for name in RUNS
    }
    note = "note       a plain autoencoder has no prior, and so no signature sample"
    assert {name: note in run.lines for name, run in exported.items()} == {name: name == "plain" for name in RUNS}


@pytest.mark.slow
def test_the_lines_that_load_it_are_shown_and_run_as_they_stand(exported):
    for name, run in exported.items():
        assert run.found["images"].shape == run.found["reconstructions"].shape == (16, *SHAPE)
        images = run.found["images"]
        assert images.any() == (name != "plain")
        expected = main.decode(run.vae, run.vae.encoder(images)[0])
        np.testing.assert_allclose(run.found["reconstructions"], expected, atol=1e-5)
        place = run.folder / "export"
        load = json.loads((place / "export.json").read_text())["load"]
        assert len(load) == 5
        assert [f"    {line}".replace("'saved_model'", f"'{place}/saved_model'") for line in load] == run.lines[-5:]


@pytest.mark.slow
def test_what_is_in_the_folder_is_told_beside_it_and_on_the_console(exported):
    run = exported["standard"]
    place = run.folder / "export"
    assert {path.name for path in place.iterdir()} == set(export.FILES)
    about = json.loads((place / "export.json").read_text())
    images = {"shape": [None, 4, 3, 2], "dtype": "float32"}
    latents = {"shape": [None, 4], "dtype": "float32"}  # three, and one of noise
    assert about["signatures"] == {
        "encode": {"inputs": {"x": images}, "outputs": {"z_mean": latents, "z_log_std": latents}},
        "encode_uint8": {
            "inputs": {"x": images | {"dtype": "uint8"}},
            "outputs": {"z_mean": latents, "z_log_std": latents},
        },
        "decode": {"inputs": {"z": {"shape": [None, 4], "dtype": "float32"}}, "outputs": {"brightness": images}},
        "sample": {
            "inputs": {"count": {"shape": [], "dtype": "int32"}, "seed": {"shape": [], "dtype": "int64"}},
            "outputs": {"brightness": images},
        },
    }
    assert (about["run"], about["step"], about["image_shape"]) == ("standard", 7, [4, 3, 2])
    assert about["settings"] == run.settings.model_dump(mode="json")
    assert about["versions"]["tensorflow"] == tf.__version__
    assert run.lines[:6] == [
        f"run        {run.folder}, step 7",
        "encode       x float32 (B, 4, 3, 2) -> z_mean float32 (B, 4), z_log_std float32 (B, 4)",
        "encode_uint8 x uint8 (B, 4, 3, 2) -> z_mean float32 (B, 4), z_log_std float32 (B, 4)",
        "decode       z float32 (B, 4) -> brightness float32 (B, 4, 3, 2)",
        "sample       count int32, seed int64 -> brightness float32 (B, 4, 3, 2)",
        f"export     {place}: encoder.keras, decoder.keras, saved_model, export.json",
    ]


@pytest.mark.slow
def test_encode_takes_uint8_and_floats_within_0_and_1_and_refuses_others(tmp_path):
    folder, vae, _ = make_run(tmp_path)
    model = tf.saved_model.load(str(export.export(folder, say=lambda line: None) / "saved_model"))
    pixels = np.uint8(X * 255)
    expected = vae.encoder(pixels / np.float32(255))[0].numpy()
    for images in (pixels, pixels / 255, pixels / np.float32(255)):
        np.testing.assert_allclose(model.encode(images)["z_mean"], expected, atol=1e-5)
    found = model.signatures["encode_uint8"](x=tf.constant(pixels))["z_mean"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for images in (np.float32(pixels), X - 1, X * 1.02, np.where(X > 0.5, np.nan, X)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"encode takes uint8, or floats in \[0, 1\]"):
            model.encode(images)
    for images in (np.int64(pixels), X > 0.5, X[0], X[:, :3]):
        with pytest.raises(ValueError, match="Could not find matching"):
            model.encode(images)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, "conv"])
def test_tensorflow_lite_computes_the_same(name, tmp_path):
    folder, vae, _ = make_run(tmp_path, name, **RUNS.get(name, {"architecture": "conv", "channels": (3, 4)}))
    place = export.export(folder, say=lambda line: None, tflite=True)
    z = np.random.default_rng(1).standard_normal((5, vae.decoder.input_shape[1]), np.float32)
    mean, log_std = (part.numpy() for part in vae.encoder(X))
    for file, given, expected in (
        ("encode", {"x": X}, {"z_mean": mean, "z_log_std": log_std}),
        ("decode", {"z": z}, {"brightness": main.decode(vae, z)}),
    ):
        with pytest.warns(UserWarning, match=r"tf.lite.Interpreter is deprecated"):
            interpreter = tf.lite.Interpreter(str(place / f"{file}.tflite"))
        found = interpreter.get_signature_runner()(**given)
        assert found.keys() == expected.keys()
        for part, values in expected.items():
            np.testing.assert_allclose(found[part], values, atol=1e-5)


# --- whole or not at all ----------------------------------------------------------------------------------------------
def test_an_older_export_is_replaced_whole_and_one_that_fails_leaves_it_alone(tmp_path, monkeypatch, capsys):
    folder, vae, _ = make_run(tmp_path)
    place = tmp_path / "models" / "digits"
    place.mkdir(parents=True)  # an empty folder counts as none
    assert ask(folder, "--to", place) == 0
    assert (place.stat().st_mode & 0o777) == ((tmp_path / "models").stat().st_mode & 0o777)
    (place / "saved_model" / "variables" / "stale").touch()
    vae.decoder.layers[1].bias.assign(np.full(24, 2.0))
    checkpoints.save(checkpoints.checkpoint(vae), folder, 9)
    before = contents(tmp_path)

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def no_second_rename(path, target, rename=Path.rename, seen=Counter()):  # noqa: B006 (kept between the calls)
        seen["calls"] += 1
        if seen["calls"] == 2:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    for owner, name, replacement, code, told in (
        (tf.saved_model, "save", full, 1, f"export: error: {place}: No space left on device\n"),
        (tf.saved_model, "save", interrupt, 130, ""),
        (Path, "rename", no_second_rename, 1, f"export: error: {place}: Permission denied\n"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            capsys.readouterr()
            assert ask(folder, "--to", place) == code
        assert capsys.readouterr().err == told
        assert contents(tmp_path) == before

    assert ask(folder, "--to", place) == 0
    assert json.loads((place / "export.json").read_text())["step"] == 9
    assert not (place / "saved_model" / "variables" / "stale").exists()
    model = tf.saved_model.load(str(place / "saved_model"))
    np.testing.assert_allclose(
        model.decode(tf.zeros((1, 3)))["brightness"], np.full((1, *SHAPE), 1 / (1 + np.exp(-2))), atol=1e-6
    )
    assert list((tmp_path / "models").iterdir()) == [place]
    assert not (folder / "export").exists()


# --- what it refuses --------------------------------------------------------------------------------------------------
def test_a_mistake_on_the_command_line_is_one_line(capsys):
    for argv, told in (
        ([], "the following arguments are required: RUN"),
        (["x", "--too", "y"], "unrecognized arguments: --too y"),
        (["x", "--to"], "argument --to: expected one argument"),
    ):
        with pytest.raises(SystemExit) as stopped:
            export.read_command_line(argv)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == f"export: error: {told}\n"


def test_a_run_that_is_not_there_and_one_without_weights_are_named(tmp_path, capsys):
    folder, _, _ = make_run(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        ask("nothing", "--output-dir", tmp_path)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"export: error: RUN nothing: no such run in {tmp_path}; there is tiny\n"
    shutil.rmtree(folder / "checkpoints")
    assert ask("tiny", "--output-dir", tmp_path) == 2
    assert capsys.readouterr().err == f"export: error: {folder} has no checkpoint to export; train it first\n"


def test_nothing_but_an_export_of_the_same_run_is_replaced(tmp_path, capsys):
    folder, _, _ = make_run(tmp_path)
    other, _, _ = make_run(tmp_path, "other")
    file = tmp_path / "file"
    file.touch()
    with_notes = tmp_path / "with_notes"
    assert ask(folder, "--to", with_notes) == 0
    shutil.copytree(with_notes, folder / "export")
    (with_notes / "notes.txt").touch()
    before = contents(tmp_path)
    is_none = "is there already and is no export; name a folder that is not there"
    capsys.readouterr()
    for run, to, told in (
        (folder, file, is_none),
        (folder, other, is_none),
        (folder, with_notes, "would be replaced, but export did not write notes.txt in it; move that file"),
        (other, folder / "export", "is an export of tiny; name another folder, or delete it"),
    ):
        assert ask(run, "--to", to) == 2
        assert capsys.readouterr().err == f"export: error: --to {to} {told}\n"
    (other / "export").mkdir()
    (other / "export" / "mine").touch()
    assert ask(other) == 2
    assert capsys.readouterr().err == f"export: error: {other / 'export'} {is_none}\n"
    (other / "export" / "mine").unlink()
    assert contents(tmp_path) == before
