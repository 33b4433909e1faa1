"""main.py: its training against the same VAE written again in NumPy, its estimates against integrals."""

import json
import math
import shutil
from typing import get_args

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import kstest, norm

import main
from tests.shared import set_xla
from tests.tiny import SHAPE, TINY, NumpyVAE, drawn, float32, plain_kl_weight, random_images, random_vae
from utils import chance, checkpoints, densities, pictures, recorder, runs
from utils.dataset import Dataset
from utils.evaluation import compile_evaluation
from utils.recorder import Recorder
from utils.settings import LEARNED_WIDTH, SettingsError, from_params, settings_model
from utils.start import tf


# --- the same training in NumPy, float64 ------------------------------------------------------------------------------
def mean_terms(chosen, weights, x, noise, step):
    """What training reports for a step: objective, mean reconstruction loss, mean KL."""
    s = chosen
    reconstruction, kl = NumpyVAE(s, weights).terms(x.reshape(len(x), -1), noise)
    beta = plain_kl_weight(s.kl_schedule, step, s.kl_weight_start, s.kl_weight_end, s.kl_steps, s.kl_cycles)
    if s.autoencoder:
        beta = 0  # with or without free bits
    divisor = math.prod(SHAPE) if s.reconstruction_reduction == "mean" else 1
    charged = sum(max(column.mean(), s.free_bits) for column in kl.T)
    return np.array([reconstruction.mean() / divisor + beta * charged, reconstruction.mean(), kl.sum(axis=1).mean()])


def numpy_training(chosen, weights, batches, horizon):
    """Train on batches of (x, noise) by Adam (Kingma & Ba 2014, end of section 2), with gradients by differences.

    Returns the weights before the first step and after each step, and the mean_terms of each step.
    """
    shapes = [weight.shape for weight in weights]
    flat = np.concatenate([np.float64(weight).ravel() for weight in weights])

    def unflat(flat):
        ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]

    m, v, trained, history = np.zeros_like(flat), np.zeros_like(flat), [unflat(flat)], []
    for step, (x, noise) in enumerate(batches):
        history.append(mean_terms(chosen, trained[-1], x, noise, step))
        nudges = 1e-5 * np.eye(len(flat))
        ahead, behind = (
            np.array([mean_terms(chosen, unflat(flat + sign * nudge), x, noise, step)[0] for nudge in nudges])
            for sign in (1, -1)
        )
        gradient = (ahead - behind) / 2e-5
        if chosen.gradient_clip:  # Pascanu et al. 2013, algorithm 1
            gradient *= min(1, chosen.gradient_clip / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = chosen.learning_rate
        if chosen.lr_schedule == "cosine":
            rate *= 0.01 + 0.99 * (1 + math.cos(math.pi * step / horizon)) / 2
        rate *= math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        flat = flat - rate * m / (np.sqrt(v) + 1e-7)
        trained.append(unflat(flat))
    return trained, np.array(history)


def training_batch(chosen, batches, step, compiled=False):
    """The batch (x, noise) of a step: the images whose turn it is, and draws that belong to (seed, purpose, step)."""
    s = chosen
    x = np.float32(batches[step % len(batches)] / 255)
    key = chance.random_key(s.seed, chance.NOISE, step)
    return x, drawn(chance.standard_normal, (s.batch_size, s.latent_dim), key, compiled=compiled)


# --- networks and sampler ---------------------------------------------------------------------------------------------
def test_initial_weights_are_glorots_and_differ_by_layer_and_seed_and_only_by_these():
    chosen = TINY | {"encoder_layers": (4, 4), "decoder_layers": (4, 4), "latent_dim": 4}
    vaes = [main.build_vae(from_params(**chosen | {"seed": seed}), (2, 2, 1)) for seed in (0, 1, 0)]
    kernels, others, again = ([w.numpy() for w in vae.weights if w.name == "kernel"] for vae in vaes)
    assert len({kernel.tobytes() for kernel in kernels + others}) == len(kernels + others) == 12
    for kernel, same in zip(kernels, again, strict=True):
        np.testing.assert_array_equal(kernel, same)
    ranges = [kernel.ravel() / math.sqrt(6 / sum(kernel.shape)) for kernel in kernels + others]
    assert kstest(np.concatenate(ranges), "uniform", (-1, 2)).pvalue > 1e-3
    assert not any(w.numpy().any() for w in vaes[0].weights if w.name == "bias")


@pytest.mark.parametrize(("encoder_layers", "decoder_layers"), [((), (3,)), ((5, 3), ())])
def test_the_networks_and_what_is_decoded_are_numpys(encoder_layers, decoder_layers):
    chosen = from_params(**TINY | {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers})
    vae, images = random_vae(chosen), random_images(5)
    plain = NumpyVAE(chosen, [weight.numpy() for weight in vae.weights])
    x = images.reshape(5, -1) / 255
    mean, log_std = plain.encode(x)
    noise = np.random.default_rng(1).normal(size=(5, 2))

    z_mean, z_log_std = vae.encoder(float32(images / 255))
    logits = vae.decoder(main.sample_latent(z_mean, z_log_std, float32(noise)))
    np.testing.assert_allclose(z_mean, mean, atol=1e-5)
    np.testing.assert_allclose(z_log_std, log_std, atol=1e-5)
    np.testing.assert_allclose(logits, plain.decode(mean + np.exp(log_std) * noise).reshape(5, *SHAPE), atol=1e-5)
    np.testing.assert_allclose(main.decode(vae, noise), expit(plain.decode(noise)).reshape(5, *SHAPE), atol=1e-5)
    np.testing.assert_allclose(main.reconstruct(vae, images), expit(plain.decode(mean)).reshape(5, *SHAPE), atol=1e-5)


def test_a_sample_is_the_mean_plus_noise_times_the_standard_deviation():
    z = main.sample_latent(float32([[1, -2]]), float32([[0, math.log(3)]]), float32([[0.5, -2]]))
    np.testing.assert_allclose(z, [[1.5, -8]], rtol=1e-6)
    noise = chance.standard_normal((20_000, 2), chance.random_key(0, chance.NOISE, 0))
    z = main.sample_latent(float32([3, -1]), float32([math.log(0.2), math.log(2)]), noise).numpy()
    for latent, distribution in enumerate([norm(3, 0.2), norm(-1, 2)]):
        assert kstest(z[:, latent], distribution.cdf).pvalue > 1e-4


# --- objective --------------------------------------------------------------------------------------------------------
def test_the_objective_and_what_is_reported_are_batch_means_of_sums():
    reconstruction, kl = float32([10, 30]), float32([[0, 1, 0.3], [0.4, 3, 0.9]])
    for reduction, expected in (("mean", 20 / 16 + 0.5 * 2.9), ("sum", 20 + 0.5 * 2.9)):
        chosen = from_params(**TINY | {"reconstruction_reduction": reduction, "free_bits": 0.3})
        minimised = main.objective(reconstruction, kl, float32(0.5), chosen, 16)
        assert minimised.numpy() == pytest.approx(expected)
    np.testing.assert_allclose(main.mean_terms(minimised, reconstruction, kl), [21.45, 20, 2.8], rtol=1e-6)


@pytest.mark.parametrize("autoencoder", [False, True])
def test_the_loss_terms_are_numpys_and_without_noise_those_of_the_autoencoder(autoencoder):
    chosen = from_params(**TINY | {"autoencoder": autoencoder})
    vae, images, noise = random_vae(chosen), random_images(3), np.random.default_rng(1).normal(size=(3, 2))
    found = main.loss_terms(vae, float32(images / 255), float32(noise), chosen)
    expected = NumpyVAE(chosen, [weight.numpy() for weight in vae.weights]).terms(images.reshape(3, -1) / 255, noise)
    for part, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, plain, rtol=1e-5)
    assert found[1].numpy().any() != autoencoder


# --- training ---------------------------------------------------------------------------------------------------------
HORIZON = 5  # steps of the learning rate's cosine
BATCHES = random_images(6).reshape(3, 2, *SHAPE)


class Training:
    """A tiny VAE and its compiled steps; each run starts again."""

    def __init__(self, compiled, **overrides):
        self.settings = from_params(**TINY | overrides)
        self.vae = random_vae(self.settings)
        self.optimizer = main.build_optimizer(self.vae, self.settings, HORIZON)
        self.variables = self.vae.weights + self.optimizer.variables
        self.start = [variable.numpy() for variable in self.variables]
        with pytest.MonkeyPatch.context() as patch:
            set_xla(patch, compiled)
            self.train_steps = main.compile_train_steps(self.vae, self.optimizer, self.settings)

    def run(self, *ends, batches=None):
        """Train from 0 to each end in turn; return the weights, and sums, last terms and step of the last call."""
        for variable, value in zip(self.variables, self.start, strict=True):
            variable.assign(value)
        batches = BATCHES if batches is None else batches
        step, sums = 0, float32([100, 200, 300])
        for end in ends:
            steps = tf.constant(0), tf.constant(step), tf.constant(end)
            sums, terms, step = self.train_steps(tf.constant(batches), *steps, sums)
        return [weight.numpy() for weight in self.vae.weights], sums.numpy(), terms.numpy(), int(step)


@pytest.fixture(scope="module")
def with_xla():
    return Training(True, encoder_layers=(), free_bits=0.0)


def assert_is_numpys(training, compiled):
    s = training.settings
    batches = [training_batch(s, BATCHES, step, compiled) for step in range(5)]
    trained, history = numpy_training(s, training.start[: len(training.vae.weights)], batches, HORIZON)
    found, sums, terms, step = training.run(5)
    assert step == 5
    np.testing.assert_allclose(terms, history[-1], rtol=1e-4)
    np.testing.assert_allclose(sums - float32([100, 200, 300]), history.sum(axis=0), rtol=1e-5)
    for weight, plain in zip(found, trained[-1], strict=True):
        np.testing.assert_allclose(weight, plain, atol=2e-4)  # each step moves a weight by up to 0.02


def test_five_steps_under_xla_are_those_of_numpy(with_xla):
    assert_is_numpys(with_xla, compiled=True)


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss": "mse", "decoder_scale": "learned", "reconstruction_reduction": "mean", "free_bits": 0.5},
        {"loss": "ad", "decoder_scale": "learned", "encoder_layers": (3, 2), "activation": "elu"},
        {"loss": "ad", "kl_schedule": "cyclical", "lr_schedule": "constant"},
        {"loss": "mse", "autoencoder": True, "free_bits": 0.5},
        {"loss": "ce", "gradient_clip": 5.0},  # some of the five gradients are longer, some are not
    ],
    ids=lambda overrides: "-".join(map(str, overrides.values())),
)
def test_five_steps_without_xla_are_those_of_numpy(overrides):
    assert_is_numpys(Training(False, **overrides), compiled=False)


def test_two_calls_train_to_the_bits_of_one_and_a_call_for_no_steps_does_nothing(with_xla):
    whole, sums, terms, step = with_xla.run(5)
    parts, part_sums, part_terms, part_step = with_xla.run(0, 3, 5)
    for weight, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(weight, other)
    np.testing.assert_array_equal((*terms, step), (*part_terms, part_step))
    np.testing.assert_allclose(sums, part_sums, rtol=1e-6)
    untouched, sums, _, step = with_xla.run(0)
    for weight, before in zip(untouched, with_xla.start, strict=False):
        np.testing.assert_array_equal(weight, before)
    assert (list(sums), step) == ([100, 200, 300], 0)
    assert with_xla.train_steps.experimental_get_tracing_count() == 1  # because step and stop are tensors


def test_training_stops_behind_the_first_step_that_is_not_finite_and_says_which(with_xla, monkeypatch):
    batches = BATCHES.copy()
    batches[:, :, 0, 0, 0] = 0  # so that nothing depends on the weights of this pixel ...
    batches[2, 0, 0, 0, 0] = 255  # ... except in step 3, where a standard deviation becomes infinite
    poisoned = [value.copy() for value in with_xla.start]
    poisoned[0][0, 2:] = 60  # from that pixel to z_log_std; tanh keeps the reconstruction finite, but the KL is not
    monkeypatch.setattr(with_xla, "start", poisoned)
    _, sums, terms, step = with_xla.run(2, batches=batches)
    assert step == 2
    assert np.isfinite([*sums, *terms]).all()
    _, _, terms, step = with_xla.run(5, batches=batches)
    assert step == int(with_xla.optimizer.iterations) == 3
    assert list(np.isfinite(terms)) == [False, True, False]


def test_the_learning_rate_falls_on_a_cosine_to_a_hundredth_and_stays():
    for schedule, factors in (("cosine", (1, 0.505, 0.01, 0.01)), ("constant", (1, 1, 1, 1))):
        chosen = from_params(**TINY | {"lr_schedule": schedule, "learning_rate": 0.004})
        optimizer = main.build_optimizer(main.build_vae(chosen, SHAPE), chosen, horizon=100)
        for step, factor in zip((0, 50, 100, 1000), factors, strict=True):
            optimizer.iterations.assign(step)
            assert float(optimizer.learning_rate) == pytest.approx(0.004 * factor, rel=1e-5)


# --- loop -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("changed", [{}, {"reconstruction_reduction": "mean", "free_bits": 0.5}])
def test_the_history_of_a_run_is_that_of_numpy(changed, monkeypatch, tmp_path):
    set_xla(monkeypatch)
    epochs_shown = []
    monkeypatch.setattr(main, "draw_grid", lambda *_: np.zeros((4, 90, 1), np.uint8))
    monkeypatch.setattr(pictures, "write_grids", lambda folder, s, grids, epoch, line: epochs_shown.append(epoch))
    chosen = from_params(**TINY | changed)
    train, test = random_images(7), random_images(3, seed=1)
    labels = np.zeros(7, np.uint8)
    (tmp_path / "params.json").write_text('{"schedule_epochs": 2, "settings": {"epochs": 2}}')
    vae = random_vae(chosen)
    start = [weight.numpy() for weight in vae.weights]
    dataset = Dataset("tiny", train, labels, test, labels[:3], "")
    run = Recorder(vae, chosen, dataset, tmp_path, print)
    main.fit(vae, chosen, dataset, compile_evaluation(vae, chosen, main.loss_terms), run)

    orders = [np.random.default_rng((chosen.seed, chance.SHUFFLE, epoch)).permutation(7)[:6] for epoch in (1, 2)]
    epochs = train[np.stack(orders)].reshape(2, 3, 2, *SHAPE)
    batches = [training_batch(chosen, epochs[step // 3], step) for step in range(6)]
    noise = drawn(chance.standard_normal, (3, 2), chance.random_key(chosen.seed, chance.TEST_NOISE, 0))
    trained, means = numpy_training(chosen, start, batches, horizon=6)
    expected = []
    for step, split in ((2, "train"), (3, "test"), (4, "train"), (6, "train"), (6, "test")):
        if split == "train":  # a mean over two steps
            terms = means[step - 2 : step].mean(axis=0)
        else:
            terms = mean_terms(chosen, trained[step], test / 255, noise, step - 1)
        ramp = "linear", chosen.kl_weight_start, chosen.kl_weight_end, chosen.kl_steps, 1
        first = step - 2 if split == "train" else step - 1
        beta = np.mean([plain_kl_weight(ramp[0], number, *ramp[1:]) for number in range(first, step)])
        expected.append((step, split, step / 3, *terms, beta, -terms[1] - terms[2]))
    columns = ("step", "split", "epoch", "objective", "reconstruction", "kl", "kl_weight", "-(loss + KL)")  # of grey
    found = [tuple(line[column] for column in columns) for line in runs.read_history(tmp_path)]
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    np.testing.assert_allclose([line[2:] for line in found], [line[2:] for line in expected], rtol=1e-4)
    assert epochs_shown == [0, 1, 2]
    for weight, plain in zip(vae.weights, trained[-1], strict=True):
        np.testing.assert_allclose(weight, plain, atol=2e-4)


@pytest.fixture
def fit(monkeypatch, tmp_path):
    """main.fit on a tiny data set, without pictures."""
    set_xla(monkeypatch)
    monkeypatch.setattr(main, "draw_grid", lambda *_: np.zeros((4, 90, 1), np.uint8))
    (tmp_path / "params.json").write_text('{"schedule_epochs": 2, "settings": {"epochs": 2}}')
    dataset = Dataset("tiny", random_images(7), np.zeros(7), random_images(3), np.zeros(3), "")

    def fit_it(vae, chosen, watch=None, watch_at=()):
        run = Recorder(vae, chosen, dataset, tmp_path, print, watch, watch_at)
        main.fit(vae, chosen, dataset, compile_evaluation(vae, chosen, main.loss_terms), run)

    return fit_it


@pytest.mark.parametrize(
    ("prior", "more"),
    [("standard", 0), ("vampprior", 1), ("mixture", 3), ("realnvp", 36)],  # the prior's own weights
)
def test_a_checkpoint_gives_the_whole_vae_back_without_its_optimizer_too(prior, more, fit, tmp_path):
    chosen = from_params(**TINY | {"loss": "mse", "decoder_scale": "learned", "prior": prior})
    trained, restored = random_vae(chosen), random_vae(chosen, seed=1)
    fit(trained, chosen)
    checkpoints.checkpoint(restored).read(str(tmp_path / "checkpoints" / "step-6")).expect_partial()
    assert len(trained.weights) == 9 + more
    for weight, same in zip(trained.weights, restored.weights, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize(
    "prior", ["standard", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vampprior", "mixture", "realnvp"))]
)
def test_a_run_on_a_bound_that_goes_on_after_a_stop_ends_as_an_unbroken_one(prior, fit, tmp_path):
    bound = {"bound": "dreg", "bound_samples": 4, "bound_chunk": 4, "gradient_clip": 1.0}  # one image at a time
    chosen = from_params(**TINY | bound | {"prior": prior, "checkpoint_every": 4})
    unbroken, before, after = (random_vae(chosen, seed) for seed in (0, 0, 1))
    fit(unbroken, chosen)
    lines = [{**line, "images_per_second": 0} for line in runs.read_history(tmp_path)]
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "history.jsonl").unlink()

    def stop(vae, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(before, chosen, stop, (5,))
    assert runs.saved_steps(tmp_path) == [4]
    fit(after, chosen)
    assert [{**line, "images_per_second": 0} for line in runs.read_history(tmp_path)] == lines
    assert all(np.array_equal(weight, same) for weight, same in zip(after.weights, unbroken.weights, strict=True))


def test_a_watch_sees_the_weights_of_each_of_its_steps_and_changes_none(fit, tmp_path):
    chosen = from_params(**TINY)  # six steps, lines at 2, 4 and 6, epochs of three
    seen = {}

    def watch(vae, step):
        seen[step] = [weight.numpy() for weight in vae.weights]

    vae = random_vae(chosen)
    start = [weight.numpy() for weight in vae.weights]
    fit(vae, chosen, watch, (0, 1, 3, 5, 6, 7))
    watched = [weight.numpy() for weight in vae.weights]
    lines = [{**line, "images_per_second": 0} for line in runs.read_history(tmp_path)]
    assert list(seen) == [0, 1, 3, 5, 6]
    for weights, same in ((seen[0], start), (seen[6], watched)):
        assert all(np.array_equal(a, b) for a, b in zip(weights, same, strict=True))
    changes = [np.abs(seen[a][0] - seen[b][0]).max() for a, b in ((0, 1), (1, 3), (3, 5), (5, 6))]
    assert min(changes) > 0

    shutil.rmtree(tmp_path / "checkpoints")
    alone = random_vae(chosen)
    fit(alone, chosen)
    assert [{**line, "images_per_second": 0} for line in runs.read_history(tmp_path)] == lines
    assert all(np.array_equal(weight, same) for weight, same in zip(alone.weights, watched, strict=True))


def test_a_run_starts_from_the_weights_of_another_and_with_an_optimizer_of_its_own(fit, tmp_path):
    chosen = from_params(**TINY)
    vae = random_vae(chosen)
    fit(vae, chosen)
    about = {"schedule_epochs": 2, "settings": chosen.model_dump(mode="json")}
    (tmp_path / "params.json").write_text(json.dumps(about))
    going_on = from_params(**TINY | {"start_from": str(tmp_path), "free_bits": 1.0})
    new = main.build_vae(going_on, SHAPE)
    checkpoints.start_from(going_on, new, pytest.fail)
    assert all(np.array_equal(weight, same) for weight, same in zip(new.weights, vae.weights, strict=True))
    for name, value in (("latent_dim", 3), ("activation", "relu"), ("encoder_layers", (3, 3))):
        other = from_params(**TINY | {"start_from": str(tmp_path), name: value})
        with pytest.raises(SettingsError, match=f"^{name}: .* is not allowed with start_from"):
            checkpoints.start_from(other, main.build_vae(other, SHAPE), pytest.fail)
    unused = from_params(**TINY | {"start_from": str(tmp_path), "prior_components": 7, "prior_layers": 3})
    checkpoints.start_from(unused, main.build_vae(unused, SHAPE), pytest.fail)  # N(0, I) uses neither
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(runs.RunError, match="has no checkpoint to start from"):
        checkpoints.start_from(going_on, new, pytest.fail)


def test_weights_that_are_not_finite_are_not_saved_though_the_objective_is(fit, tmp_path):
    chosen = from_params(**TINY | {"loss": "mse", "autoencoder": True})
    vae = random_vae(chosen)
    vae.encoder.get_layer("posterior").bias.assign([0, 0, 0, math.nan])  # z_log_std, which is unused here
    with pytest.raises(recorder.Diverged, match="posterior/bias has weights that are not finite"):
        fit(vae, chosen)
    assert runs.saved_steps(tmp_path) == []


def test_the_grids_of_two_epochs_show_the_same_images_and_the_same_latents(monkeypatch):
    monkeypatch.setattr(pictures, "reconstructions", lambda reconstruct, dataset: dataset)
    monkeypatch.setattr(pictures, "samples", lambda decode, latents: np.array(latents))
    chosen = from_params(**TINY)
    vae = main.build_vae(chosen, SHAPE)
    assert main.draw_grid(vae, chosen, "test images", "reconstructions") == "test images"
    first, second = (main.draw_grid(vae, chosen, "test images", "samples") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (100, 2)
    assert kstest(first.ravel(), "norm").pvalue > 1e-3


# --- what a user adds to ----------------------------------------------------------------------------------------------
def choices(constant):
    return set(get_args(settings_model().model_fields[constant].annotation))


def test_every_loss_and_every_architecture_that_params_allows_has_its_function_and_no_other_has():
    assert choices("loss") == main.LOSSES.keys() | densities.LOSSES.keys()
    assert set(LEARNED_WIDTH) == densities.LOSSES.keys()
    assert choices("architecture") == main.ENCODERS.keys()
    assert main.DECODERS.keys() <= main.ENCODERS.keys()


@pytest.mark.parametrize(("name", "functions"), [("loss", "LOSSES"), ("architecture", "ENCODERS")])
def test_what_params_allows_and_main_has_no_function_for_is_refused_by_name(name, functions, monkeypatch):
    chosen = from_params(**TINY)
    monkeypatch.setattr(main, functions, {})
    monkeypatch.setattr(densities, "LOSSES", {})
    with pytest.raises(SettingsError, match=f"^{name}: '{getattr(chosen, name)}' is allowed by params.py, but main.py"):
        main.build_vae(chosen, SHAPE)
