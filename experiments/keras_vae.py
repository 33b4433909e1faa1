"""The default run of main.py, written with Keras. experiments/benchmark.py --whole-run compares the two.

    python -m experiments.keras_vae --epochs 15 --output-dir predictions/keras

The same VAE learns MNIST in the same way (docs/speed.md), with `fit` and its defaults. It writes grids of samples and
reconstructions, before training and after each epoch, and history.csv: there -val_loss is the test ELBO in nats.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from utils import mnist
from utils.console import experiment_parser, run, whole
from utils.dataset import TEST_BINARIZATION_KEY, binarize
from utils.quiet import quiet_start
from utils.settings import from_params

os.environ["KERAS_BACKEND"] = "tensorflow"
with quiet_start():
    import keras
    import tensorflow as tf
    from keras import layers

    tf.config.list_physical_devices()  # the search for a GPU prints warnings if there is none; they are hidden here

keras.config.set_floatx("float32")

PIXELS, HIDDEN, LATENTS = 784, (512, 512), 20
ACTIVATION = "silu"
BATCH_SIZE, LEARNING_RATE, KL_STEPS = 128, 1e-3, 2_000


def mlp(inputs, outputs):
    """A network (B, inputs) -> (B, outputs)."""
    hidden = [layers.Dense(units, activation=ACTIVATION) for units in HIDDEN]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(outputs)])


class VAE(keras.Model):
    """A variational autoencoder of uint8 images (B, 784), 0 to 255."""

    def __init__(self):
        super().__init__()
        self.encoder = mlp(PIXELS, 2 * LATENTS)  # z_mean and z_log_std are the two halves of one output
        self.decoder = mlp(LATENTS, PIXELS)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        """The metrics that Keras resets at the start of each epoch and of each test."""
        return [self.loss_tracker]

    def terms(self, x):
        """Reconstruction loss and KL of images (B, 784) in [0, 1], each a mean over the batch in nats."""
        z_mean, z_log_std = tf.split(self.encoder(x), 2, axis=1)
        z = z_mean + tf.exp(z_log_std) * tf.random.normal(tf.shape(z_mean))
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=self.decoder(z))
        kl = (tf.exp(2.0 * z_log_std) + z_mean**2 - 1.0) / 2.0 - z_log_std
        return tf.reduce_mean(tf.reduce_sum(cross_entropy, axis=1)), tf.reduce_mean(tf.reduce_sum(kl, axis=1))

    def train_step(self, images):
        """Train on a batch; each pixel is drawn black or white, and its brightness is the probability of white."""
        x = brightness(images)
        x = tf.cast(tf.random.uniform(tf.shape(x)) < x, tf.float32)
        kl_weight = tf.minimum(tf.cast(self.optimizer.iterations, tf.float32) / KL_STEPS, 1.0)
        with tf.GradientTape() as tape:
            reconstruction, kl = self.terms(x)
            loss = reconstruction + kl_weight * kl
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, images):
        """Test on a batch of black and white images; the loss is -ELBO."""
        reconstruction, kl = self.terms(brightness(images))
        self.loss_tracker.update_state(reconstruction + kl, sample_weight=tf.shape(images)[0])
        return {"loss": self.loss_tracker.result()}


def brightness(images):
    """uint8 images as float32 in [0, 1]."""
    return tf.cast(images, tf.float32) / 255.0


def compiled_vae(steps):
    """An untrained VAE with Adam; the learning rate falls to a hundredth within `steps` steps."""
    vae = VAE()
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps, alpha=0.01)
    vae.compile(optimizer=keras.optimizers.Adam(rate))
    return vae


class Grids(keras.callbacks.Callback):
    """Before training and after each epoch: 100 samples, and 50 test images over their reconstructions, as PNG."""

    def __init__(self, folder, test_images):
        super().__init__()
        self.folder = folder
        self.latents = tf.random.normal((100, LATENTS))
        self.originals = test_images[:50]

    def on_train_begin(self, logs=None):
        """Write the grids of the untrained model."""
        self.on_epoch_end(-1)

    def on_epoch_end(self, epoch, logs=None):
        """Write both grids of an epoch, the samples last; Keras counts from 0."""
        z_mean, _ = tf.split(self.model.encoder(brightness(self.originals)), 2, axis=1)
        rows = [a.reshape(-1, 10, PIXELS) for a in (self.originals, self.decoded(z_mean))]
        save_grid(self.folder / f"reconstructions_{epoch + 1:03}.png", np.stack(rows, axis=1))
        save_grid(self.folder / f"samples_{epoch + 1:03}.png", self.decoded(self.latents))

    def decoded(self, latents):
        """Latents (N, 20) -> uint8 images (N, 784)."""
        return np.rint(255.0 * tf.sigmoid(self.model.decoder(latents))).astype(np.uint8)


def save_grid(path, images, columns=10):
    """Write uint8 images (..., 784), in rows of `columns`, as one picture."""
    sheet = images.reshape(-1, columns, 28, 28).swapaxes(1, 2).reshape(-1, columns * 28)
    Image.fromarray(sheet).save(path)


def main():
    """Train, test and draw. Raises console.Problem and OSError."""
    parser = experiment_parser("keras_vae", __doc__)
    parser.add_argument("--epochs", type=whole(1, 10**6), default=15, help="passes over the training images [15]")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the grids and of history.csv")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    dataset = mnist.load("mnist", from_params().data_dir)
    images = dataset.train_images.reshape(-1, PIXELS)
    test_images = binarize(dataset.test_images, TEST_BINARIZATION_KEY).reshape(-1, PIXELS)
    vae = compiled_vae(steps=args.epochs * -(-len(images) // BATCH_SIZE))
    vae.fit(
        images,
        batch_size=BATCH_SIZE,
        epochs=args.epochs,
        validation_data=test_images,
        validation_batch_size=1_000,
        callbacks=[Grids(args.output_dir, test_images), keras.callbacks.CSVLogger(args.output_dir / "history.csv")],
        verbose=2,  # one line per epoch, not a bar that is redrawn twenty times a second
    )


if __name__ == "__main__":
    raise SystemExit(run("keras_vae", main))
