"""utils/networks.py: convolutions against NumPy, shapes for all sizes, how a residual block starts."""

import itertools

import numpy as np
import pytest

import main
from utils.networks import map_sizes
from utils.settings import from_params
from utils.start import tf

SHAPES = [(28, 28, 1), (64, 64, 3), (128, 128, 3), (12, 20, 2)]


def built(image_shape, **changes):
    """An untrained VAE with small layers, unless `changes` says otherwise."""
    small = {"architecture": "conv", "encoder_layers": (5,), "decoder_layers": (5,), "channels": (2, 3, 4)}
    small |= {"activation": "silu", "latent_dim": 6, "noise_dim": 0, "mixed_precision": False}
    return main.build_vae(from_params(**small | changes), image_shape)


def images(count, shape, seed=0):
    return np.random.default_rng(seed).random((count, *shape), np.float32)


@pytest.mark.parametrize("architecture", ["conv", "resnet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_networks_fit_images_of_any_size_divisible_by_four(shape, architecture):
    vae = built(shape, architecture=architecture, latent_dim=6, noise_dim=2)
    z_mean, z_log_std = vae.encoder(images(3, shape))
    assert z_mean.shape == z_log_std.shape == (3, 6 + 2)
    assert not z_mean[:, 6:].numpy().any() | z_log_std[:, 6:].numpy().any()  # noise latents are N(0, 1)
    assert z_mean[:, :6].numpy().all() & z_log_std[:, :6].numpy().all()
    assert vae.decoder(images(3, (8,))).shape == (3, *shape)


def test_a_stage_halves_an_image_while_its_sides_are_even():
    four = from_params(channels=(8,) * 4)
    assert map_sizes(28, 28, four) == [(28, 28), (14, 14), (7, 7), (7, 7), (7, 7)]
    assert map_sizes(64, 64, four)[-1] == (4, 4)
    assert map_sizes(12, 20, four)[-1] == (3, 5)


def correlate(maps, kernel, stride):
    """Maps (H, W, C) with a kernel (k, k, C, D), padded with zeros so that H / stride rows result: (h, w, D)."""
    size = kernel.shape[0]
    before = (size - stride) // 2
    after = size - stride - before
    padded = np.pad(maps, [(before, after), (before, after), (0, 0)])
    rows, columns = ((side + before + after - size) // stride + 1 for side in maps.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[3]))
    for row, column in itertools.product(range(rows), range(columns)):
        window = padded[row * stride : row * stride + size, column * stride : column * stride + size]
        out[row, column] = np.tensordot(window, kernel, 3)
    return out


def with_random_biases(network):
    rng = np.random.default_rng(1)
    for weight in network.trainable_variables:
        if weight.path.endswith("bias"):
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return [weight.numpy().astype(np.float64) for weight in network.trainable_variables]


def test_the_convolutional_encoder_is_the_one_written_in_numpy():
    encoder = built((4, 8, 2), channels=(3, 5), encoder_layers=(), activation="tanh").encoder
    first, first_bias, second, second_bias, dense, dense_bias = with_random_biases(encoder)
    x = images(1, (4, 8, 2))
    maps = np.tanh(correlate(np.float64(x[0]), first, 2) + first_bias)
    maps = np.tanh(correlate(maps, second, 2) + second_bias)
    expected = np.split(maps.ravel() @ dense + dense_bias, 2)
    np.testing.assert_allclose(np.squeeze(encoder(x)), expected, rtol=1e-5, atol=1e-6)


def test_the_convolutional_decoder_is_the_one_written_in_numpy():
    decoder = built((4, 4, 2), channels=(3, 5), decoder_layers=(), activation="tanh", latent_dim=6).decoder
    dense, dense_bias, inner, inner_bias, outer, outer_bias, last, last_bias = with_random_biases(decoder)

    def transposed(maps, kernel, bias):
        """The transpose of correlate() at stride 2: maps of twice the size."""
        height, width, _ = maps.shape
        out = np.zeros((2 * height + 2, 2 * width + 2, kernel.shape[2]))
        for row, column in itertools.product(range(height), range(width)):
            out[2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += kernel @ maps[row, column]
        return np.tanh(out[1:-1, 1:-1] + bias)

    z = images(1, (6,))
    maps = np.tanh(np.float64(z[0]) @ dense + dense_bias).reshape(1, 1, 5)
    maps = transposed(transposed(maps, inner, inner_bias), outer, outer_bias)
    np.testing.assert_allclose(decoder(z)[0], correlate(maps, last, 1) + last_bias, rtol=1e-5, atol=1e-6)


def test_residual_blocks_begin_as_nothing_and_then_learn():
    shape, x = (8, 8, 1), images(2, (8, 8, 1))
    one, three = (built(shape, architecture="resnet", residual_blocks=blocks) for blocks in (1, 3))
    for network in ("encoder", "decoder"):
        begun = [getattr(vae, network)(x if network == "encoder" else images(2, (6,))) for vae in (one, three)]
        np.testing.assert_array_equal(*begun)
    with tf.GradientTape() as tape:
        target = tf.reduce_sum(tf.stack(three.encoder(x)) ** 2)
    last = [weight.value for weight in three.encoder.trainable_variables if "_out" in weight.path]
    assert len(last) == 2 * 9  # kernels and biases of three blocks in each of three stages
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(target, last))


@pytest.mark.parametrize("architecture", ["mlp", "conv", "resnet"])
def test_initial_weights_follow_from_the_seed_and_no_two_layers_share_theirs(architecture):
    alike = {
        "architecture": architecture,
        "channels": (4, 4, 4),
        "encoder_layers": (4, 4, 4),
        "decoder_layers": (4, 4, 4),
    }
    once, again, other = (built((8, 8, 4), seed=seed, **alike).weights for seed in (3, 3, 4))
    kernels = [weight.numpy() for weight in once if weight.path.endswith("kernel") and weight.numpy().any()]
    for weight, same, different in zip(once, again, other, strict=True):
        np.testing.assert_array_equal(weight.numpy(), same.numpy())
        assert not weight.numpy().any() or (weight.numpy() != different.numpy()).any()
    beginnings = [np.round(kernel.ravel()[:4] / np.abs(kernel).max(), 3).tobytes() for kernel in kernels]
    assert len(set(beginnings)) == len(kernels)


@pytest.mark.parametrize("architecture", ["mlp", "conv", "resnet"])
def test_mixed_precision_is_of_hidden_layers_only_and_keeps_the_loss_within_a_hundredth(architecture):
    shape = (16, 16, 3)
    settings = {"architecture": architecture, "loss": "logistic", "decoder_scale": "learned", "channels": (8, 8)}
    settings |= {"encoder_layers": (64,), "decoder_layers": (64,)}
    exact, mixed = (built(shape, mixed_precision=choice, **settings) for choice in (False, True))
    hidden = [layer.compute_dtype for layer in mixed.encoder.layers[1:-2] + mixed.decoder.layers[1:-2]]
    assert hidden
    assert set(hidden) == {"bfloat16"}
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    x, noise = images(32, shape), np.random.default_rng(2).standard_normal((32, 6), np.float32)
    chosen = from_params(loss="logistic", decoder_scale="learned", latent_dim=6, noise_dim=0)
    terms = [main.loss_terms(vae, tf.constant(x), tf.constant(noise), chosen) for vae in (exact, mixed)]
    for of_exact, of_mixed in zip(*terms, strict=True):
        assert of_exact.dtype == of_mixed.dtype == tf.float32
        assert (of_exact.numpy() != of_mixed.numpy()).any()
        np.testing.assert_allclose(np.sum(of_mixed), np.sum(of_exact), rtol=0.01)
