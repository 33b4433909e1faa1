"""Training speed of this project's loop beside Keras `fit`, PyTorch and JAX, and beside what the machine can do at all.

    python -m pip install -r requirements-benchmark.txt
    python -m experiments.benchmark                      images per second; some seven minutes
    python -m experiments.benchmark --architecture conv  the same with convolutions
    python -m experiments.benchmark --time-to-quality    seconds until the digits of MNIST are learned so well
    python -m experiments.benchmark --profile            where the time of a step of this project's loop goes
    python -m experiments.benchmark --whole-run          `python main.py` from start to end (experiments/whole_run.py)

All contenders do the same work on the CPU (docs/speed.md describes it), and shuffle and binarise again in each epoch.
The column `objective` is the mean of the last epoch in nats. It shows that they learn the same. Each has its own
process, because the thread pools of two libraries in one process disturb each other. They take turns of one epoch while
the others sleep. Ratios are formed within a round, so a machine that is slow for a while slows both sides. `gemm` is
the machine's limit: the speed at which it multiplies large matrices, divided by the FLOPs of an image. A peer that is
not installed is named and skipped.

The time to quality ends when the test ELBO first reaches a mark. The test images chose nothing: 5,000 training images,
held out, chose the network (--held-out). All rounds are written to predictions/, in a file named after what was
measured.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import timeit
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments import whole_run
from experiments.study import BASE
from experiments.timing import IMAGES, environment, our_loop, spread, usable_cores
from utils import console, mnist
from utils.dataset import TEST_BINARIZATION_KEY, binarize
from utils.files import write_json
from utils.settings import ROOT, from_params

OUTPUT = ROOT / "predictions"
PIXELS, HIDDEN, LATENTS = 784, (500, 500), 20
ENCODER_SIZES = (PIXELS, *HIDDEN, 2 * LATENTS)  # z_mean and z_log_std are the two halves of one output
DECODER_SIZES = (LATENTS, *HIDDEN, PIXELS)
CHANNELS, UNITS = (32, 64), 256  # of the convolutions (each halves the image), and of the dense layers
LEARNING_RATE = 1e-3
OBJECTIVE_TOLERANCE = 5.0  # nats; another seed changes less than one, another objective tens
MARKS = (-100.0, -95.0)  # test ELBOs in nats, in the order in which they are reached
SPEED_ACTIVATION = "relu"
QUALITY_ACTIVATION = "silu"  # reaches -95 on held-out images in 35 epochs; "relu" is at -97.3 after 29
HELD_OUT = 5_000  # training images
ROUNDS, MOST_EPOCHS, RUNS = 20, 60, 3  # unless --rounds says otherwise
RUN_EPOCHS = 15  # of a whole run, as params.py has them, unless --epochs says otherwise
STEPS = {"mlp": 468, "conv": 117}  # by architecture, unless --steps says otherwise: an epoch; a quarter of one
NOISE_KEY = 0  # of the noise under which the ELBO is judged; any number would do


# --- the images -------------------------------------------------------------------------------------------------------
def random_images():
    """Images of MNIST's shape and share of ink: uint8 (60000, 784), 19 percent of them not 0."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (IMAGES, PIXELS), dtype=np.uint8)
    images[rng.random(images.shape, dtype=np.float32) > 0.19] = 0
    return images


def mnist_images(held_out):
    """MNIST's training images, uint8 (60000, 784), and its test images, binarised once, uint8 (10000, 784).

    With `held_out`, the last training images are left out of training and take the place of the test images.
    Raises DataError.
    """
    dataset = mnist.load("mnist", from_params().data_dir)
    train, test = (images.reshape(-1, PIXELS) for images in (dataset.train_images, dataset.test_images))
    if held_out:
        train, test = train[:-HELD_OUT], train[-HELD_OUT:]
    return train, binarize(test, TEST_BINARIZATION_KEY)


# --- the contenders ---------------------------------------------------------------------------------------------------
# Each takes the images, uint8 (N, 784) with N a multiple of the batch size, and the names of activation and
# architecture. It returns two functions. train(epochs) continues training and, when all is computed, returns the mean
# objective of its last epoch in nats. weights() returns the weights of the encoder and of the decoder as NumPy arrays.
# For an MLP, these are a kernel (inputs, outputs) and a bias (outputs,) for each layer, the input layer first.


def our_settings(batch_size, activation, architecture="mlp"):
    """The settings that make main.py do the same work as the contenders."""
    hidden = {"mlp": HIDDEN, "conv": (UNITS,)}[architecture]
    return from_params(**BASE | {
        "architecture": architecture, "encoder_layers": hidden, "decoder_layers": hidden, "channels": CHANNELS,
        "activation": activation, "latent_dim": LATENTS, "kl_schedule": "constant", "lr_schedule": "constant",
        "batch_size": batch_size, "learning_rate": LEARNING_RATE,
    })  # fmt: skip


def ours(images, batch_size, activation, architecture):
    """This project's loop."""
    return our_loop(images, our_settings(batch_size, activation, architecture))


def keras_networks(activation, architecture):
    """The encoder and the decoder: images (B, 784) -> (B, 2 * 20), latents (B, 20) -> logits (B, 784)."""
    from keras import Input, Sequential, layers

    def mlp(sizes):
        hidden = [layers.Dense(size, activation=activation) for size in sizes[1:-1]]
        return Sequential([Input(sizes[:1]), *hidden, layers.Dense(sizes[-1])])

    def convolution(kind, channels):
        return kind(channels, kernel_size=4, strides=2, padding="same", activation=activation)

    if architecture == "mlp":
        return mlp(ENCODER_SIZES), mlp(DECODER_SIZES)
    encoder = [
        Input((PIXELS,)),
        layers.Reshape((28, 28, 1)),
        *(convolution(layers.Conv2D, channels) for channels in CHANNELS),
        layers.Flatten(),
        layers.Dense(UNITS, activation=activation),
        layers.Dense(2 * LATENTS),
    ]
    decoder = [
        Input((LATENTS,)),
        layers.Dense(UNITS, activation=activation),
        layers.Dense(7 * 7 * CHANNELS[-1], activation=activation),
        layers.Reshape((7, 7, CHANNELS[-1])),
        convolution(layers.Conv2DTranspose, CHANNELS[0]),
        convolution(layers.Conv2DTranspose, CHANNELS[0]),
        layers.Conv2D(1, kernel_size=3, padding="same"),
        layers.Flatten(),
    ]
    return Sequential(encoder), Sequential(decoder)


def keras_fit(images, batch_size, activation, architecture):
    """Keras: a model with its own train_step and `fit` with its defaults, given the array."""
    import keras
    import tensorflow as tf

    def negative_elbo(encoder, decoder, x, noise):
        z_mean, z_log_std = tf.split(encoder(x), 2, axis=1)
        logits = decoder(z_mean + tf.exp(z_log_std) * noise)
        reconstruction = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits), axis=1)
        kl = 0.5 * tf.reduce_sum(z_mean**2 + tf.exp(2.0 * z_log_std) - 1.0 - 2.0 * z_log_std, axis=1)
        return tf.reduce_mean(reconstruction + kl)

    class VAE(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = keras_networks(activation, architecture)
            self.loss_tracker = keras.metrics.Mean(name="loss")

        def train_step(self, data):
            x = tf.cast(data, tf.float32) / 255.0
            x = tf.cast(tf.random.uniform(tf.shape(x)) < x, tf.float32)
            noise = tf.random.normal((tf.shape(x)[0], LATENTS))
            with tf.GradientTape() as tape:
                objective = negative_elbo(self.encoder, self.decoder, x, noise)
            self.optimizer.apply(tape.gradient(objective, self.trainable_weights), self.trainable_weights)
            self.loss_tracker.update_state(objective)
            return {"loss": self.loss_tracker.result()}

    model = VAE()
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE))

    def train(epochs):
        history = model.fit(images, batch_size=batch_size, epochs=epochs, shuffle=True, verbose=0)
        return history.history["loss"][-1]

    return train, lambda: (model.encoder.get_weights(), model.decoder.get_weights())


def torch_networks(activation, architecture):
    """The same as keras_networks, with the initial weights that Keras gives its layers."""
    import torch
    from torch import nn

    activate = {"relu": nn.ReLU, "silu": nn.SiLU}[activation]

    def mlp(sizes):
        layers = [layer for size in pairwise(sizes) for layer in (nn.Linear(*size), activate())]
        return nn.Sequential(*layers[:-1])

    if architecture == "mlp":
        encoder, decoder = mlp(ENCODER_SIZES), mlp(DECODER_SIZES)
    else:
        maps = (CHANNELS[-1], 7, 7)
        encoder = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            *(nn.Conv2d(1, CHANNELS[0], 4, stride=2, padding=1), activate()),
            *(nn.Conv2d(*CHANNELS, 4, stride=2, padding=1), activate()),
            nn.Flatten(),
            *(nn.Linear(math.prod(maps), UNITS), activate()),
            nn.Linear(UNITS, 2 * LATENTS),
        )
        decoder = nn.Sequential(
            *(nn.Linear(LATENTS, UNITS), activate()),
            *(nn.Linear(UNITS, math.prod(maps)), activate()),
            nn.Unflatten(1, maps),
            *(nn.ConvTranspose2d(*CHANNELS[::-1], 4, stride=2, padding=1), activate()),
            *(nn.ConvTranspose2d(CHANNELS[0], CHANNELS[0], 4, stride=2, padding=1), activate()),
            nn.Conv2d(CHANNELS[0], 1, 3, padding=1),
            nn.Flatten(),
        )
        for network in (encoder, decoder):  # a fifth faster than with the default, channels first
            network.to(memory_format=torch.channels_last)
    for layer in [*encoder, *decoder]:
        if hasattr(layer, "weight"):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return encoder, decoder


def torch_eager(images, batch_size, activation, architecture):
    """PyTorch: eager, with its default Adam; the data is a tensor that a random permutation indexes."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(usable_cores())
    encoder, decoder = torch_networks(activation, architecture)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE)
    data, steps_per_epoch = torch.from_numpy(images), len(images) // batch_size

    def train(epochs):
        for _ in range(epochs):
            total = torch.zeros(())
            for rows in torch.randperm(len(data)).split(batch_size):
                x = data[rows].float() / 255.0
                x = (torch.rand_like(x) < x).float()  # a little faster than torch.bernoulli
                z_mean, z_log_std = encoder(x).chunk(2, dim=1)
                logits = decoder(z_mean + z_log_std.exp() * torch.randn_like(z_mean))
                reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=1)
                kl = 0.5 * (z_mean**2 + (2.0 * z_log_std).exp() - 1.0 - 2.0 * z_log_std).sum(dim=1)
                objective = (reconstruction + kl).mean()
                optimizer.zero_grad()
                objective.backward()
                optimizer.step()
                total += objective.detach()
        return float(total) / steps_per_epoch

    def weights():
        return [[p.detach().numpy().T for p in network.parameters()] for network in (encoder, decoder)]

    return train, weights


def jax_scan(images, batch_size, activation, architecture):
    """JAX: a jitted `lax.scan` over the steps of an epoch, with Adam written out. For the MLP only."""
    import jax
    import jax.numpy as jnp

    def mlp(sizes, key):
        keys, glorot = jax.random.split(key, len(sizes) - 1), jax.nn.initializers.glorot_uniform()
        return [(glorot(k, size), jnp.zeros(size[1])) for k, size in zip(keys, pairwise(sizes), strict=True)]

    def apply(layers, x):
        for kernel, bias in layers[:-1]:
            x = getattr(jax.nn, activation)(x @ kernel + bias)
        return x @ layers[-1][0] + layers[-1][1]

    def negative_elbo(params, x, noise):
        z_mean, z_log_std = jnp.split(apply(params[0], x), 2, axis=1)
        logits = apply(params[1], z_mean + jnp.exp(z_log_std) * noise)
        # Keras and PyTorch use this form too. It cannot overflow, and takes less than jax.nn.softplus.
        loss = jnp.maximum(logits, 0.0) - logits * x + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        kl = 0.5 * jnp.sum(z_mean**2 + jnp.exp(2.0 * z_log_std) - 1.0 - 2.0 * z_log_std, axis=1)
        return jnp.mean(jnp.sum(loss, axis=1) + kl)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_epoch(state, data, order, key):
        def train_step(state, rows):
            params, m, v, step = state
            pixel_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
            x = jax.random.bernoulli(pixel_key, data[rows].astype(jnp.float32) / 255.0).astype(jnp.float32)
            noise = jax.random.normal(noise_key, (batch_size, LATENTS))
            objective, gradients = jax.value_and_grad(negative_elbo)(params, x, noise)
            step += 1
            m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, gradients)
            v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g**2, v, gradients)
            rate = LEARNING_RATE * jnp.sqrt(1.0 - 0.999**step) / (1.0 - 0.9**step)
            params = jax.tree.map(lambda p, a, b: p - rate * a / (jnp.sqrt(b) + 1e-7), params, m, v)
            return (params, m, v, step), objective

        state, objectives = jax.lax.scan(train_step, state, order)
        return state, objectives.mean()

    params = [mlp(ENCODER_SIZES, jax.random.key(0)), mlp(DECODER_SIZES, jax.random.key(1))]
    state = (params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params), 0)
    # JAX's default is its fastest on a CPU: with rbg and unsafe_rbg, a step took 3 to 17 percent longer.
    key = jax.random.key(2, impl="threefry2x32")
    data, rng, steps_per_epoch = jnp.asarray(images), np.random.default_rng(0), len(images) // batch_size

    def train(epochs):
        nonlocal state
        for _ in range(epochs):
            order = rng.permutation(len(images)).astype(np.int32).reshape(steps_per_epoch, batch_size)
            state, objective = train_epoch(state, data, jnp.asarray(order), key)
        return float(jax.block_until_ready((state, objective))[1])

    return train, lambda: [[np.asarray(w) for layer in network for w in layer] for network in state[0]]


# In the order of their turns: the function, the package that it needs, and its name in the table.
CONTENDERS = {
    "ours": (ours, "tensorflow", "ours"),
    "keras": (keras_fit, "keras", "Keras fit"),
    "torch": (torch_eager, "torch", "PyTorch eager"),
    "jax": (jax_scan, "jax", "JAX lax.scan"),
}
CONVOLUTIONAL = ("ours", "keras", "torch")  # those that can do --architecture conv


# --- parts of our step, each alone ------------------------------------------------------------------------------------
# Each takes the images and the batch size, as the contenders do. It returns a function that does its part of all steps
# of an epoch, in a loop that XLA compiles, as in main.py. Each round of the loop depends on the round before or on its
# own number. Otherwise XLA would compute it only once.


def step_products(x, kernels):
    """The products of a step: of x (B, 784) with the `kernels` one after another, and the gradients of all kernels.

    There is no activation, bias, sampler or loss: values are passed on as they are, of the posterior only the means.
    """
    from utils.start import tf

    inputs = []
    for kernel in kernels:
        inputs.append(x[:, : kernel.shape[0]])
        x = tf.matmul(inputs[-1], kernel)
    gradients = []
    for values, kernel in zip(inputs[::-1], kernels[::-1], strict=True):
        gradients.append(tf.matmul(values, x[:, : kernel.shape[1]], transpose_a=True))
        if values is not inputs[0]:  # nobody needs the gradient with respect to the pixels
            x = tf.matmul(x, kernel, transpose_b=True)
            x = tf.pad(x, [[0, 0], [0, LATENTS]]) if kernel.shape[0] == LATENTS else x
    return gradients


def matrix_products(images, batch_size):
    """step_products of the network."""
    from utils.start import tf

    sizes = [*pairwise(ENCODER_SIZES), *pairwise(DECODER_SIZES)]
    kernels = [tf.random.normal(size) / size[0] ** 0.5 for size in sizes]
    batches = tf.constant(images.reshape(-1, batch_size, PIXELS))

    @tf.function(jit_compile=True)
    def run(batches, stop):
        gradients = [tf.zeros(size) for size in sizes[::-1]]
        for step in tf.range(stop):
            gradients = step_products(tf.cast(batches[step], tf.float32) / 255, kernels)
        return gradients

    return lambda: run(batches, len(batches))[0][0, 0].numpy()


def adam(images, batch_size):
    """The optimizer's update of all weights, with constant gradients."""
    import main as project
    from utils.start import tf

    settings = our_settings(batch_size, SPEED_ACTIVATION)
    vae = project.build_vae(settings, (28, 28, 1))
    optimizer = project.build_optimizer(vae, settings, horizon=1)
    gradients = [tf.random.normal(weight.shape) for weight in vae.weights]

    @tf.function(jit_compile=True)
    def run(gradients, steps):
        for _ in tf.range(steps):
            optimizer.apply(gradients, vae.weights)
        return vae.weights[0][0, 0]

    return lambda: run(gradients, tf.constant(len(images) // batch_size)).numpy()


def pixel_loss(images, batch_size):
    """Scaling the pixels, the cross-entropy of the logits and its gradient."""
    import main as project
    from utils.batches import brightness
    from utils.start import tf

    batches = tf.constant(images.reshape(-1, batch_size, PIXELS))

    @tf.function(jit_compile=True)
    def run(batches, logits):
        for batch in batches:
            with tf.GradientTape() as tape:
                tape.watch(logits)
                loss = tf.reduce_mean(project.cross_entropy(brightness(batch), logits))
            logits -= tape.gradient(loss, logits)
        return logits

    return lambda: run(batches, tf.random.normal((batch_size, PIXELS)))[0, 0].numpy()


def epoch_drawing(images, batch_size):
    """What the host does before an epoch: shuffle, gather, binarise, and copy to the device."""
    from utils.batches import draw_epoch

    settings, epochs = our_settings(batch_size, SPEED_ACTIVATION), itertools.count()
    return lambda: draw_epoch(images.reshape(-1, 28, 28, 1), settings, next(epochs))


PARTS = {  # by their names in the table
    "matrix products": matrix_products,
    "Adam": adam,
    "pixels and loss": pixel_loss,
    "drawing": epoch_drawing,
}


# --- the judge --------------------------------------------------------------------------------------------------------
def mean_elbo(encoder, decoder, images, noise, activation):
    """The mean ELBO in nats of binary images (N, 784), 0 or 255, under noise (N, L), of a contender's weights().

    It is computed with NumPy, independently of the contenders' code, so that all are judged in the same way.
    """
    activate = {"relu": lambda a: np.maximum(a, 0), "silu": lambda a: a * (1 + np.tanh(a / 2)) / 2}[activation]

    def mlp(weights, values):
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            values = activate(values @ kernel + bias)
        return values @ weights[-2] + weights[-1]

    x = images.astype(np.float32) / 255
    z_mean, z_log_std = np.split(mlp(encoder, x), 2, axis=1)
    logits = mlp(decoder, z_mean + np.exp(z_log_std) * noise)
    reconstruction = np.sum(np.logaddexp(0, logits) - x * logits, axis=1, dtype=np.float64)
    kl = 0.5 * np.sum(z_mean**2 + np.exp(2 * z_log_std) - 1 - 2 * z_log_std, axis=1, dtype=np.float64)
    return -float(np.mean(reconstruction + kl))


# --- the limit --------------------------------------------------------------------------------------------------------
def gemm_flops_per_second(size=2048, repeats=20):
    """The best of several float32 products of two square matrices, by TensorFlow's MatMul."""
    import tensorflow as tf

    a, b = tf.random.normal((size, size)), tf.random.normal((size, size))
    return 2 * size**3 / min(timeit.repeat(lambda: tf.matmul(a, b)[0, 0].numpy(), repeat=repeats, number=1))


def flops_per_image():
    """Multiplications and additions of the matrix products that training on one image takes.

    The forward pass, the gradient of the weights and the gradient of the inputs cost the same, except that nobody needs
    the gradient of the pixels.
    """
    forward = sum(2 * a * b for sizes in (ENCODER_SIZES, DECODER_SIZES) for a, b in pairwise(sizes))
    return 3 * forward - 2 * ENCODER_SIZES[0] * ENCODER_SIZES[1]


# --- one contender, in its own process --------------------------------------------------------------------------------
def serve(args):
    """For each line of standard input, measure one contender (or the limit) once, and answer with a line of JSON."""
    if args.worker == "gemm":
        for _ in sys.stdin:
            print(json.dumps({"gflops_per_second": gemm_flops_per_second() / 1e9}), flush=True)
        return
    images, test_images = mnist_images(args.held_out) if args.time_to_quality else (random_images(), None)
    activation = QUALITY_ACTIVATION if args.time_to_quality else SPEED_ACTIVATION
    steps_per_epoch = min(args.steps, len(images) // args.batch_size)  # a short run gets short epochs
    images = images[: steps_per_epoch * args.batch_size]
    epochs = 1 if args.time_to_quality else round(args.steps / steps_per_epoch)
    if args.worker in PARTS:
        run = PARTS[args.worker](images, args.batch_size)
        for _ in sys.stdin:
            start = time.perf_counter()
            for _ in range(epochs):
                run()
            print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
        return
    train, weights = CONTENDERS[args.worker][0](images, args.batch_size, activation, args.architecture)
    for _ in sys.stdin:
        start = time.perf_counter()
        objective = train(epochs)
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "images_per_second": epochs * len(images) / seconds, "objective": objective}
        if args.time_to_quality:
            noise = np.random.default_rng(NOISE_KEY).standard_normal((len(test_images), LATENTS), np.float32)
            answer["test_elbo"] = mean_elbo(*weights(), test_images, noise, activation)
            answer["judging"] = time.perf_counter() - start - seconds
        print(json.dumps(answer), flush=True)


@contextmanager
def worker(name, args):
    """Start a process that serves one contender. Yields what its first turn measured, and a function for further turns.

    In its first turn a contender also compiles, and warms up caches and thread pools. `start_up` are the seconds before
    that turn, from the start of the process on. A failure ends the run and shows why.
    """
    command = [sys.executable, "-m", "experiments.benchmark", "--worker", name, "--architecture", args.architecture]
    command += ["--steps", str(args.steps), "--batch-size", str(args.batch_size)]
    command += ["--time-to-quality"] * args.time_to_quality + ["--held-out"] * args.held_out
    pipes, started = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}, time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=errors, **pipes) as process,
    ):

        def take_turn():
            if process.poll() is None:
                print(file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                errors.seek(0)
                raise console.Problem(f"{name} failed with exit code {process.wait()}\n{errors.read()}")
            return json.loads(answer)

        try:
            first = take_turn()
            first["start_up"] = time.perf_counter() - started - first.get("seconds", 0) - first.get("judging", 0)
            yield first, take_turn
        finally:
            process.kill()


# --- what is shown ----------------------------------------------------------------------------------------------------
def machine():
    """The processor's name, if the system knows it, and the versions of what is compared."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = [p for p in ("tensorflow", "keras", "torch", "jax") if importlib.util.find_spec(p)]
    return {"cpu": cpu, "versions": {p: importlib.metadata.version(p) for p in packages}}


def table(rounds):
    """The lines of the result: one for each contender, then the limit."""
    lines = [f"{'':14}{'images/s (quartiles)':27}{'ours / it (quartiles)':22}{'objective':>9}"]
    names = [name for name in CONTENDERS if name in rounds[0]]
    objectives = {name: rounds[-1][name]["objective"] for name in names}
    for name in names:
        speed = spread([r[name]["images_per_second"] for r in rounds])
        ratio = ""
        if "ours" in names and name != "ours":
            ratio = spread([r["ours"]["images_per_second"] / r[name]["images_per_second"] for r in rounds], 2)
        lines.append(f"{CONTENDERS[name][2]:14}{speed:27}{ratio:22}{objectives[name]:9.2f}")
    if names and max(objectives.values()) - min(objectives.values()) > OBJECTIVE_TOLERANCE:
        lines.append(f"The objectives differ by more than {OBJECTIVE_TOLERANCE} nats: this is not identical work.")
    if "gemm" in rounds[0]:
        gemm = [r["gemm"]["gflops_per_second"] for r in rounds]
        limit = [1e9 * g / flops_per_image() for g in gemm]
        lines += [f"GEMM {spread(gemm)} GFLOP/s, of which an image takes {flops_per_image() / 1e6:.1f} MFLOP:"]
        lines += [f"{'limit':14}{spread(limit):27}"]
        if "ours" in names:
            share = [100 * r["ours"]["images_per_second"] / most for r, most in zip(rounds, limit, strict=True)]
            lines[-1] += f"ours reaches {spread(share)} percent"
    return lines


def time_to(mark, turns):
    """How long a contender took until its test ELBO reached `mark` nats, or None if it did not. A turn is one epoch.

    In `seconds`, the first turn, which also compiles, counts as long as the median of the others. `with_start` is the
    time of all these turns as they were, and of the start-up before them.
    """
    epochs = next((epoch for epoch, turn in enumerate(turns, 1) if turn["test_elbo"] >= mark), None)
    if epochs is None:
        return None
    first, *others = [turn["seconds"] for turn in turns]
    later = sum(others[: epochs - 1])
    with_start = turns[0]["start_up"] + first + later
    return {"epochs": epochs, "seconds": float(np.median(others)) + later, "with_start": with_start}


def quality(rounds):
    """What time_to returns, by mark and contender."""
    return {mark: {name: time_to(mark, [r[name] for r in rounds]) for name in rounds[0]} for mark in MARKS}


def quality_table(rounds):
    """The lines of the result: how fast and how good each was, then how long each took to each mark."""
    lines = [f"{'':14}{'seconds per epoch (quartiles)':31}{'start-up':>10}{'first epoch':>13}{'last test ELBO':>16}"]
    for name in rounds[0]:
        first, *others = [r[name]["seconds"] for r in rounds]
        start_up, elbo = rounds[0][name]["start_up"], rounds[-1][name]["test_elbo"]
        lines.append(f"{CONTENDERS[name][2]:14}{spread(others, 2):31}{start_up:10.2f}{first:13.2f}{elbo:16.2f}")
    for mark, times in quality(rounds).items():
        lines.append(f"Training until the test ELBO is at least {mark:g} nats, in seconds:")
        lines.append(f"{'':14}{'epochs':>6}{'seconds':>10}{'it / ours':>11}{'from the start':>18}{'it / ours':>11}")
        for name, taken in times.items():
            if taken is None:
                lines.append(f"{CONTENDERS[name][2]:14}not within {len(rounds)} epochs")
                continue
            line = f"{CONTENDERS[name][2]:14}{taken['epochs']:6}"
            for key, width in (("seconds", 10), ("with_start", 18)):
                ratio = f"{taken[key] / times['ours'][key]:.2f}" if name != "ours" and times.get("ours") else ""
                line += f"{taken[key]:{width}.1f}{ratio:>11}"
            lines.append(line.rstrip())
    return lines


def profile_table(rounds, batch_size):
    """The lines of the result: the share of each part in our step, and how near the products come to the limit."""
    ours, speed = (np.array([r["ours"][key] for r in rounds]) for key in ("seconds", "images_per_second"))
    milliseconds = 1000 * batch_size / speed
    lines = [f"{'':17}{'ms per step (quartiles)':27}{'percent of it (quartiles)':25}"]
    lines.append(f"{'our step':17}{spread(milliseconds, 2)}")
    rest = 100 * np.ones(len(rounds))
    for name in PARTS:
        share = np.array([r[name]["seconds"] for r in rounds]) / ours
        rest -= 100 * share
        lines.append(f"{name:17}{spread(share * milliseconds, 2):27}{spread(100 * share)}")
    lines.append(f"{'everything else':44}{spread(rest)}")
    limit = np.array([1e9 * r["gemm"]["gflops_per_second"] / flops_per_image() for r in rounds])
    products = speed * ours / np.array([r["matrix products"]["seconds"] for r in rounds])
    lines.append(f"Of the GEMM limit our step reaches {spread(100 * speed / limit)} percent,")
    lines.append(f"its matrix products alone {spread(100 * products / limit)} percent.")
    return lines


def parse(argv):
    """The command line, checked."""
    parser, number = console.experiment_parser("benchmark", __doc__), console.whole(1, 10**6)
    parser.add_argument("--architecture", choices=STEPS, default="mlp", help="conv: without JAX and the limit")
    parser.add_argument("--time-to-quality", action="store_true", help="seconds until MNIST is learned, not images/s")
    parser.add_argument("--held-out", action="store_true", help=f"judge that by {HELD_OUT:,} training images, left out")
    parser.add_argument("--profile", action="store_true", help="time of the parts of our step, not of the contenders")
    parser.add_argument("--whole-run", action="store_true", help="main.py and the same in Keras, from start to end")
    parser.add_argument("--epochs", type=number, help=f"with --whole-run: epochs of each run ({RUN_EPOCHS})")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="with --whole-run: also main.py of another "
                        "checkout, e.g. what `git worktree add FOLDER COMMIT` makes")  # fmt: skip
    parser.add_argument("--rounds", type=number, help=f"rounds in which all take their turn ({ROUNDS}; --whole-run: "
                        f"{RUNS}); with --time-to-quality at most so many epochs ({MOST_EPOCHS})")  # fmt: skip
    parser.add_argument("--steps", type=number, help="steps of a turn, in whole epochs "
                        f"({STEPS['mlp']}; conv: {STEPS['conv']})")  # fmt: skip
    parser.add_argument("--batch-size", type=number, default=128, help="images a step (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=["gemm", *CONTENDERS], help="leave out all but these")
    parser.add_argument("--quick", action="store_true", help="few rounds of 20 steps, or one whole run of 2 epochs, "
                        "to see that it works; not kept")  # fmt: skip
    parser.add_argument("--worker", choices=["gemm", *CONTENDERS, *PARTS], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    images, only = IMAGES - HELD_OUT * args.held_out, set(args.only or ())
    conv, quality_or_profile = args.architecture == "conv", args.time_to_quality or args.profile
    for refused, message in (
        (args.batch_size > images, f"--batch-size: there are {images} images"),
        (args.held_out and not args.time_to_quality, "--held-out: goes with --time-to-quality only"),
        (args.profile and (args.time_to_quality or only), "--profile: goes with neither --time-to-quality nor --only"),
        (conv and quality_or_profile, "--architecture: conv goes with neither --time-to-quality nor --profile"),
        (conv and only - {*CONVOLUTIONAL}, f"--only: with --architecture conv there are {', '.join(CONVOLUTIONAL)}"),
        (args.time_to_quality and "gemm" in only, "--only: gemm is not a contender, and learns nothing"),
    ):
        if refused:
            parser.error(message)
    if args.whole_run:
        check_whole_run(parser, args)
        return args
    if args.epochs or args.against:
        parser.error(f"--{'epochs' if args.epochs else 'against'}: goes with --whole-run only")
    if args.quick:
        args.rounds, args.steps = 2, 20
    args.steps = args.steps or STEPS[args.architecture]
    args.rounds = args.rounds or (MOST_EPOCHS if args.time_to_quality else ROUNDS)
    if args.time_to_quality and args.rounds < 2:
        parser.error("--rounds: the time to quality takes at least 2, as the first compiles")
    return args


def check_whole_run(parser, args):
    """Refuse options that make no sense with --whole-run, and fill in the defaults."""
    for name in ("architecture", "time_to_quality", "profile", "steps", "batch_size"):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: does not go with --whole-run")
    if not set(args.only or ()) <= {"ours", "keras"}:
        parser.error("--only: with --whole-run there are ours, keras")
    if args.against and not (args.against / "main.py").is_file():
        parser.error(f"--against: there is no main.py in {args.against}")
    if args.against and "ours" not in (args.only or ["ours"]):
        parser.error("--against: compares with ours, which --only leaves out")
    if args.epochs == 1:
        parser.error("--epochs: at least 2, as the first also compiles")
    if args.quick:
        args.rounds, args.epochs = 1, 2
    args.rounds, args.epochs = args.rounds or RUNS, args.epochs or RUN_EPOCHS
    args.against = args.against and args.against.resolve()


def take_rounds(turns, args):
    """Let all in `turns` take their turns, and return the rounds.

    For speeds, the first round, in which they compile and warm up, does not count. For the time to quality all rounds
    count, and they end as soon as all contenders have reached the last mark.
    """

    def reached(rounds):
        return len(rounds) > 1 and all(quality(rounds)[MARKS[-1]].values())

    most = args.rounds + (not args.time_to_quality)
    with ExitStack() as workers, tqdm(total=most * len(turns), ncols=79, disable=None) as progress:

        def in_turn():
            for name in turns:
                progress.set_description(name)
                yield name
                progress.update()

        opened = {name: workers.enter_context(worker(name, args)) for name in in_turn()}
        rounds = [{name: answer for name, (answer, _) in opened.items()}]
        while len(rounds) < most and not (args.time_to_quality and reached(rounds)):
            rounds.append({name: opened[name][1]() for name in in_turn()})
    return rounds if args.time_to_quality else rounds[1:]


def write_results(name, args, results):
    """Write what was measured, and how, to a file in predictions/; a quick trial is not kept."""
    if not args.quick:
        OUTPUT.mkdir(exist_ok=True)
        arguments = {option: str(value) if isinstance(value, Path) else value for option, value in vars(args).items()}
        write_json(OUTPUT / f"{name}.json", {"arguments": arguments, **results})


def main(argv=None):
    """Measure in turns, print the table, and write all rounds to a file in predictions/. Raises console.Problem."""
    args = parse(argv)
    if args.worker:
        serve(args)
        return
    facts = machine()
    print(f"{facts['cpu']}, {usable_cores()} of {os.cpu_count()} cores")
    print(", ".join(f"{package} {version}" for package, version in facts["versions"].items()))
    if args.whole_run:
        write_results("whole_run", args, {**facts, **whole_run.measure(args)})
        return
    wanted = args.only or [*([] if args.time_to_quality else ["gemm"]), *CONTENDERS]
    if args.profile:
        wanted = ["gemm", "ours", *PARTS]
    elif args.architecture == "conv":
        wanted = args.only or CONVOLUTIONAL
    missing = [n for n in wanted if n in CONTENDERS and not importlib.util.find_spec(CONTENDERS[n][1])]
    turns = [n for n in ("gemm", *CONTENDERS, *PARTS) if n in wanted and n not in missing]
    for name in missing:
        print(f"{CONTENDERS[name][2]}: not installed, skipped; see requirements-benchmark.txt")
    if args.time_to_quality:
        mnist_images(args.held_out)  # a download, if needed, happens here, once
    rounds = take_rounds(turns, args)
    name, results = {"mlp": "benchmark", "conv": "benchmark_conv"}[args.architecture], {}
    if args.time_to_quality:
        name, results = "time_to_quality", {"activation": QUALITY_ACTIVATION, "times": quality(rounds)}
        print(*quality_table(rounds), sep="\n")
    elif args.profile:
        name = "profile"
        print(*profile_table(rounds, args.batch_size), sep="\n")
    else:
        print(*table(rounds), sep="\n")
    write_results(name, args, {**facts, **results, "rounds": rounds})


if __name__ == "__main__":
    sys.exit(console.run("benchmark", main))
