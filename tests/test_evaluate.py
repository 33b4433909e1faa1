"""experiments/evaluate.py on small runs whose likelihoods are integrals, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, logsumexp
from scipy.stats import bernoulli, norm

import main
from experiments import classifier, evaluate
from tests.shared import set_xla
from utils import checkpoints, data, runs
from utils.batches import brightness
from utils.dataset import TEST_BINARIZATION_KEY, Dataset, binarize, ids_of
from utils.settings import BEFORE, from_params
from utils.start import tf

TINY = BEFORE | {
    "encoder_layers": (8,), "decoder_layers": (8,), "activation": "tanh", "latent_dim": 2, "noise_dim": 0,
    "autoencoder": False, "prior": "standard", "prior_components": 3, "loss": "ce", "decoder_scale": "fixed",
    "binarize": "dynamic", "dataset": "mnist", "labels": (), "held_out": 0, "seed": 3, "run_name": "tiny",
}  # fmt: skip


def images(count, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def grey_data(shape, train, test):
    labels = np.arange(train, dtype=np.uint8) % 10
    x_train, x_test = images(train, shape, 0), images(test, shape, 1)
    return Dataset("tiny", x_train, labels, x_test, labels[:test], "a test", test_ids=ids_of(x_test))


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Make a run with random weights, as training saves it, on images of a shape: its folder, VAE and settings."""
    set_xla(monkeypatch)
    monkeypatch.setattr(evaluate, "IMAGES_AT_ONCE", 8)
    monkeypatch.setattr(
        classifier, "train_classifier", lambda x, y, seed: classifier.build_classifier(x.shape[1:], 10, 0)
    )

    def make(shape=(3, 3, 1), train=60, test=16, **overrides):
        settings = from_params(**TINY | {"output_dir": str(tmp_path)} | overrides)
        vae = main.build_vae(settings, shape)
        rng = np.random.default_rng(5)
        for weight in vae.encoder.trainable_variables + vae.decoder.trainable_variables:
            weight.assign(rng.normal(0, 0.4, weight.shape))

        def prepare(settings, say, folder):
            dataset = grey_data(shape, train, test)
            if settings.binarize == "none":
                return dataset
            return dataset._replace(test_images=binarize(dataset.test_images, TEST_BINARIZATION_KEY))

        monkeypatch.setattr(data, "prepare", prepare)
        folder = runs.create(settings, "CPU", shape)
        checkpoints.save(checkpoints.checkpoint(vae), folder, 7)
        return folder, vae, settings

    return make


def ask(folder, *more):
    return evaluate.main(evaluate.read_command_line([str(folder), "--components", "2", *map(str, more)]))


def read(folder):
    return json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)


def posteriors(vae):
    z_mean, z_log_std = vae.encoder(test_images() / np.float32(255))
    return np.float64(z_mean), np.exp(np.float64(z_log_std))


def test_images():
    return binarize(grey_data((3, 3, 1), 60, 16).test_images, TEST_BINARIZATION_KEY)


test_images.__test__ = False


def log_p_x_given_z(vae, z):
    """log p(x|z) of the 16 test images, for z (M, L): (16, M)."""
    white = expit(np.float64(vae.decoder(z.astype(np.float32)))).reshape(1, len(z), -1)
    return bernoulli.logpmf(test_images().reshape(16, 1, -1) // 255, white).sum(axis=2)


AXIS = np.arange(-7, 7.05, 0.1)
GRID = np.stack(np.meshgrid(AXIS, AXIS), axis=-1).reshape(-1, 2)


# --- the likelihood ---------------------------------------------------------------------------------------------------
def test_the_likelihood_is_the_integral_over_the_latents_and_the_first_bound_the_elbo(make_run, capsys):
    folder, vae, _ = make_run()
    kernel, bias = vae.encoder.get_layer("posterior").weights
    kernel.assign(kernel.numpy() / 3)  # posteriors about as wide as the prior, so that few draws are enough
    bias.assign([0.5, -0.5, 0, 0.2])
    checkpoints.save(checkpoints.checkpoint(vae), folder, 8)
    assert ask(folder, "--samples", 1_000) == 0
    numbers = read(folder)
    found = numbers["likelihood"]
    log_p = log_p_x_given_z(vae, GRID)
    exact = logsumexp(log_p + norm.logpdf(GRID).sum(axis=1), axis=1) + 2 * np.log(0.1)
    assert found["standard_error_sampling"] < 0.02
    assert found["log_likelihood"] == pytest.approx(exact.mean(), abs=5 * found["standard_error_sampling"])
    assert found["standard_error_images"] == pytest.approx(exact.std(ddof=1) / np.sqrt(16), rel=0.1)

    z_mean, z_std = (part[:, np.newaxis] for part in posteriors(vae))
    q = np.exp(norm.logpdf(GRID, z_mean, z_std).sum(axis=2)) * 0.01  # (16, grid)
    kl = ((z_std**2 + z_mean**2 - 1) / 2 - np.log(z_std)).sum(axis=(1, 2))
    elbo = ((q * log_p).sum(axis=1) - kl).mean()
    bounds = found["bounds"]
    assert [bound["samples"] for bound in bounds] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000]
    assert bounds[0]["bound"] == pytest.approx(elbo, abs=0.05)  # 16,000 draws with a standard deviation below 1.5
    assert elbo < exact.mean() - 0.2
    assert (np.diff([bound["bound"] for bound in bounds][:8]) > 0).all()
    assert bounds[-1]["bound"] == pytest.approx(found["log_likelihood"], abs=1e-4)

    assert numbers["step"] == 8
    assert numbers["published_nll"]["nll"] == 86.76
    shown = capsys.readouterr().out
    assert f"{found['log_likelihood']:.2f} nats" in shown
    for line in shown.splitlines():
        if line.startswith(("  ELBO", "  log-likelihood", "  ... inactive")):
            assert line.endswith(", binarised")
    with Image.open(folder / "bound.png") as picture:
        assert picture.width > 600
    assert not list(folder.glob(".evaluation-*"))


def test_inactive_units_are_drawn_from_the_prior_and_noise_latents_are_left_alone(make_run):
    folder, vae, _ = make_run(noise_dim=1)
    layer = vae.encoder.get_layer("posterior")
    kernel, _ = layer.get_weights()
    kernel[:, 1] = kernel[:, 3] = 0  # the second latent's posterior is N(0.5, 1.2^2), whatever the image
    layer.set_weights([kernel, np.float32([0, 0.5, 0.3, np.log(1.2)])])
    checkpoints.save(checkpoints.checkpoint(vae), folder, 8)
    assert ask(folder, "--samples", 600) == 0
    found = read(folder)["likelihood"]
    assert (found["active_units"], found["latent_dim"]) == (1, 2)
    other = found["inactive_from_prior"]
    assert other["log_likelihood"] != found["log_likelihood"]
    error = np.hypot(other["standard_error_sampling"], found["standard_error_sampling"])
    assert error < 0.03
    assert other["log_likelihood"] == pytest.approx(found["log_likelihood"], abs=5 * error)

    parts = np.float32([[[1, 2, 3]], [[4, 5, 6]]])  # z_mean and z_log_std of an image
    z_mean, z_log_std = evaluate.with_inactive_from_prior(tuple(parts[..., :3]), np.array([True, False]))
    np.testing.assert_array_equal(z_mean, [[1, 0, 0]])
    np.testing.assert_array_equal(z_log_std, [[4, 0, 0]])


def test_where_all_units_are_active_or_the_prior_is_learned_nothing_is_weighed_again(make_run):
    for prior in ("standard", "mixture"):
        folder, _, _ = make_run(prior=prior, run_name=prior)
        assert ask(folder, "--samples", 5) == 0
        found = read(folder)["likelihood"]
        assert (found["active_units"], found["inactive_from_prior"]) == (2, None)


def test_a_learned_prior_is_what_the_draws_are_weighed_with(make_run):
    folder, vae, _ = make_run(prior="mixture")
    vae.encoder.get_layer("posterior").bias.assign([0, 0, 0.5, 0.5])
    vae.prior.weights[0].assign([[-1, 0], [1, 1], [0, -2]])
    checkpoints.save(checkpoints.checkpoint(vae), folder, 8)
    assert ask(folder, "--samples", 1_000) == 0
    found = read(folder)["likelihood"]
    log_prior = logsumexp([norm.logpdf(GRID, mean).sum(axis=1) for mean in ([-1, 0], [1, 1], [0, -2])], axis=0)
    exact = logsumexp(log_p_x_given_z(vae, GRID) + log_prior - np.log(3), axis=1) + 2 * np.log(0.1)
    assert found["standard_error_sampling"] < 0.03
    assert found["log_likelihood"] == pytest.approx(exact.mean(), abs=5 * found["standard_error_sampling"])


def test_no_two_draws_are_the_same_and_none_depends_on_how_many_there_are(make_run, monkeypatch, tmp_path):
    _, vae, settings = make_run(noise_dim=1)

    def first_and_last(sums, first, stop, sizes, x, z_mean, z_log_std, log_p, log_prior, draw_noise):
        earliest, last = (tf.cast(draw_noise(k), tf.float64) for k in (first, stop - 1))
        return sums._replace(log_sum=earliest, log_sum_of_squares=last)

    def seen(samples):
        sizes = evaluate.sizes_up_to(samples)
        weigh = evaluate.compile_weighing(vae, settings, main.reconstruction_loss, apart, sizes)
        batch, latents = images(8, (3, 3, 1), 0), np.zeros((8, 3), np.float32)
        parts = [next(iter(weigh(batch, start, latents, latents, samples))) for start in (0, 8, 59_999)]
        return np.array([sums[:2] for _, sums in parts]).reshape(-1, 3)  # the first and the last draw of a call

    real, aparts = evaluate.compile_weighing, []
    monkeypatch.setattr(evaluate, "compile_weighing", lambda *words: aparts.append(words[3]) or real(*words))
    evaluate.weigh_all(vae, settings, images(8, (3, 3, 1), 0), (np.zeros((8, 3), np.float32),) * 2, 4, tmp_path, "x")
    [apart] = aparts
    assert apart >= 10**6  # the largest --samples: no draw is also one of the next image
    monkeypatch.setattr(evaluate.likelihood, "add_draws", first_and_last)
    few, many = seen(4), seen(10**6)
    assert len(np.unique(many, axis=0)) == 3 * 2 * 8
    np.testing.assert_array_equal(few.reshape(3, 2, 8, 3)[:, 0], many.reshape(3, 2, 8, 3)[:, 0])


def test_parts_of_the_images_are_weighed_by_draws_of_their_own(make_run, tmp_path):
    _, vae, settings = make_run()
    alike = np.repeat(images(1, (3, 3, 1), 0), 16, axis=0)  # in two parts of eight
    posteriors = tuple(np.zeros((16, vae.decoder.input_shape[1]), np.float32) for _ in range(2))
    weighed = evaluate.weigh_all(vae, settings, alike, posteriors, 4, tmp_path, "weighing")
    assert len(np.unique(weighed.estimates)) == 16


@pytest.mark.parametrize(
    ("samples", "sizes"), [(2, (1, 2)), (7, (1, 2, 5, 7)), (128, (1, 2, 5, 10, 20, 50, 100, 128)), (10, (1, 2, 5, 10))]
)
def test_the_bounds_shown_are_of_round_numbers_and_the_last(samples, sizes):
    assert evaluate.sizes_up_to(samples) == sizes


def test_an_interrupted_evaluation_goes_on_where_it_was_and_ends_as_an_unbroken_one(make_run, monkeypatch, capsys):
    folder, _, _ = make_run(test=20)
    unbroken = shutil.copytree(folder, folder.parent / "unbroken")
    assert ask(unbroken, "--samples", 100) == 0
    estimate, weighed = evaluate.likelihood.estimate, []

    def interrupt_in_the_second(sums, samples):
        weighed.append(len(sums.log_sum))
        if len(weighed) == 2:
            raise KeyboardInterrupt
        return estimate(sums, samples)

    monkeypatch.setattr(evaluate.likelihood, "estimate", interrupt_in_the_second)
    monkeypatch.setattr(evaluate, "PARTS_AT_ONCE", 1)  # one after the other, so that it is known which is the second
    capsys.readouterr()
    assert ask(folder, "--samples", 100) == 130
    assert capsys.readouterr().out.endswith("\nstopped    the same command goes on from here\n")
    assert not (folder / "evaluation.json").exists()
    assert ask(folder, "--samples", 100) == 0
    assert weighed == [8, 8, 8, 8]  # the first eight images were not weighed again; the last four are padded
    numbers, expected = read(folder), read(unbroken)
    for one in (numbers, expected):
        one["likelihood"]["seconds"] = one["run"] = None
    assert numbers == expected

    monkeypatch.setattr(evaluate, "weigh_all", lambda *_: pytest.fail("weighed again"))
    capsys.readouterr()
    assert ask(folder, "--samples", 100) == 0  # it is finished
    assert f"{expected['likelihood']['log_likelihood']:.2f} nats" in capsys.readouterr().out

    kept = evaluate.unfinished(folder, 100)
    assert kept == evaluate.unfinished(folder, 100)
    checkpoints.save(tf.train.Checkpoint(), folder, 9)  # other weights give other numbers
    places = {kept, evaluate.unfinished(folder, 100), evaluate.unfinished(folder, 200)}
    monkeypatch.setattr(evaluate, "code_of", lambda module: {"experiments.evaluate": "other"}[module])
    places |= {evaluate.unfinished(folder, 200), evaluate.unfinished(folder, 200, tested="other images")}
    assert len(places) == 5


# --- samples ----------------------------------------------------------------------------------------------------------
def test_reconstructions_and_samples_are_compared_with_grey_test_images(make_run, capsys):
    folder, vae, settings = make_run(shape=(28, 28, 1), noise_dim=1, train=80, test=30)
    assert ask(folder, "--samples", 2) == 0
    numbers = read(folder)
    distances = numbers["samples"]["frechet"]
    assert list(distances) == [
        "training images", "reconstructions", "samples from the prior", "samples from the mixture",
    ]  # fmt: skip
    judge, grey = classifier.build_classifier((28, 28, 1), 10, 0), grey_data((28, 28, 1), 80, 30)
    chosen = np.random.default_rng(evaluate.CHOICE).permutation(80)[:30]  # the same for every run, and so is the floor
    real, floor = (
        classifier.features(judge, brightness(pictures)) for pictures in (grey.test_images, grey.train_images[chosen])
    )
    assert distances["training images"] == pytest.approx(classifier.frechet_distance(real, floor), rel=1e-4)
    binary = binarize(grey.train_images, (settings.seed, evaluate.REAL_IMAGES))[chosen]
    reconstructed = classifier.features(judge, main.reconstruct(vae, binary))
    assert distances["reconstructions"] == pytest.approx(classifier.frechet_distance(reconstructed, real), rel=1e-3)
    assert len({round(distance, 6) for distance in distances.values()}) == 4
    assert "no Inception FID" in capsys.readouterr().out
    with Image.open(folder / "samples_mixture.png") as picture:
        assert picture.width > 900


def test_how_much_better_a_mixture_knows_where_the_latents_are(make_run, monkeypatch):
    """All posteriors are near (3, -2): there N(0, I) has the log-density -(|z|^2 / 2 + log(2 pi))."""
    folder, vae, _ = make_run(train=4_000, test=2_000)
    monkeypatch.setattr(evaluate, "IMAGES_AT_ONCE", 1_000)
    layer = vae.encoder.get_layer("posterior")
    layer.set_weights([layer.get_weights()[0] * 0, np.float32([3, -2, np.log(0.5), np.log(0.1)])])
    checkpoints.save(checkpoints.checkpoint(vae), folder, 8)
    assert ask(folder, "--samples", 2) == 0
    samples = read(folder)["samples"]
    second_moment = 3**2 + 2**2 + 0.5**2 + 0.1**2
    assert samples["prior"]["log_density_of_latents"] == pytest.approx(-second_moment / 2 - np.log(2 * np.pi), abs=0.2)
    entropy = 1 + np.log(2 * np.pi) + np.log(0.5 * 0.1)
    assert samples["mixture"]["log_density_of_latents"] == pytest.approx(-entropy, abs=0.1)


# --- runs that have no likelihood -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "told", "sets"),
    [
        ({"autoencoder": True}, "A plain autoencoder has no prior and no likelihood", 1),
        ({"loss": "mse", "binarize": "none", "held_out": 16}, "Not a likelihood: mse without its constants", 2),
        ({"binarize": "none"}, "Not a likelihood: cross-entropy on grey pixels", 2),
    ],
)
def test_a_loss_that_is_no_likelihood_gets_samples_only(make_run, overrides, told, sets, capsys):
    folder, _, _ = make_run(**overrides)
    assert ask(folder, "--samples", 5) == 0
    numbers = read(folder)
    assert numbers["likelihood"] is None
    assert not (folder / "bound.png").exists()
    assert ("prior" in numbers["samples"]) == (not overrides.get("autoencoder", False))
    assert numbers["samples"]["frechet"] is None  # 3 x 3 pixels are not digits
    shown = capsys.readouterr().out
    assert told in shown
    assert "log-likelihood" not in shown
    assert "bound.png" not in shown
    with Image.open(folder / "samples_mixture.png") as picture:
        assert picture.width == pytest.approx(110 * (1 + 3.6 * (sets + 1)), abs=2)


def test_a_density_is_called_one(make_run, capsys):
    folder, _, _ = make_run(loss="mse", decoder_scale="learned", binarize="none")
    assert ask(folder, "--samples", 5) == 0
    numbers = read(folder)
    assert numbers["kind"] == "density"
    assert numbers["published_nll"] is None
    shown = capsys.readouterr().out
    assert "  log-density" in shown
    assert "grey as they are" in shown
    assert "may exceed 0 and does not compare with the NLL of binary pixels" in shown
    assert "log-likelihood" not in shown
    assert "binarised" not in shown


def test_held_out_images_are_called_that_and_nothing_published_stands_beside(make_run, capsys):
    folder, _, _ = make_run(held_out=16)
    assert ask(folder, "--samples", 2) == 0
    assert read(folder)["published_nll"] is None
    assert "Of 16 held-out training images, binarised once by a fixed draw" in capsys.readouterr().out


# --- what it refuses --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "the following arguments are required: RUN"),
        (["x", "--samples", "1"], "argument --samples: '1' is not allowed; an integer from 2 to 1,000,000 is"),
        (["x", "--samples", "2.5"], "argument --samples: '2.5' is not allowed; an integer from 2 to 1,000,000 is"),
        (["x", "--components", "0"], "argument --components: '0' is not allowed; an integer from 1 to 1,000 is"),
        (["x", "--sample", "5"], "unrecognized arguments: --sample 5"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.read_command_line(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"evaluate: error: {told}\n"


def test_a_run_that_is_not_there_and_one_without_weights_are_named(make_run, tmp_path, capsys):
    folder, _, _ = make_run()
    with pytest.raises(SystemExit) as stopped:
        ask("nothing", "--output-dir", tmp_path)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"evaluate: error: RUN nothing: no such run in {tmp_path}; there is tiny\n"
    shutil.rmtree(folder / "checkpoints")
    assert ask(folder) == 2
    assert "has no checkpoint" in capsys.readouterr().err


def test_what_cannot_be_written_is_named(make_run, monkeypatch, capsys):
    folder, _, _ = make_run()

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(evaluate, "write_json", full)
    assert ask(folder, "--samples", 2) == 1
    assert capsys.readouterr().err.endswith(f"evaluate: error: {folder / 'evaluation.json'}: No space left on device\n")
