"""A small convolutional classifier of digits, that judges samples: are they clear digits, and are all digits there?"""

import keras
import numpy as np
from scipy.special import softmax
from scipy.stats import entropy

from utils import data

BATCH_SIZE = 256
PEAK_LEARNING_RATE = 6e-3
SURE = 0.95  # a sample whose digit has a larger probability than this is taken for a clear one


def to_brightness(images: np.ndarray) -> np.ndarray:
    """uint8 images as float32 in [0, 1], of the same shape."""
    return images.astype(np.float32) / 255


def build_classifier(image_shape: tuple[int, ...], classes: int, seed: int) -> keras.Model:
    """Brightness (B, H, W, C) -> logits (B, classes), untrained; the weights follow from the seed."""
    glorot = [keras.initializers.GlorotUniform(int(s)) for s in np.random.SeedSequence(seed).generate_state(4)]
    layers = [
        keras.Input(image_shape, name="x"),
        keras.layers.Conv2D(16, 5, 2, "same", activation="relu", kernel_initializer=glorot[0], name="conv_0"),
        keras.layers.Conv2D(32, 3, 1, "same", activation="relu", kernel_initializer=glorot[1], name="conv_1"),
        keras.layers.MaxPooling2D(name="pool"),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(64, "relu", kernel_initializer=glorot[2], name="features"),
        keras.layers.Dense(classes, kernel_initializer=glorot[3], name="logits"),
    ]
    return keras.Sequential(layers, name="classifier")


def train_classifier(images: np.ndarray, labels: np.ndarray, seed: int, epochs: int = 2) -> keras.Model:
    """Train a classifier on uint8 images (N, H, W, C) with integer labels (N,), of which there are max + 1 classes.

    It gives logits (B, classes) for float32 brightness (B, H, W, C) in [0, 1]; see to_brightness and probabilities.
    The same seed gives the same classifier, whatever was drawn before: Keras's global generator is not used. The
    learning rate falls to zero along a cosine, so that as few as two epochs end well.
    """
    classifier = build_classifier(images.shape[1:], int(labels.max()) + 1, seed)
    steps = epochs * -(-len(images) // BATCH_SIZE)
    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(PEAK_LEARNING_RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # convolutions under XLA on a CPU are 50 times slower
    )
    for epoch in range(epochs):
        order = data.epoch_order(len(images), (seed, epoch))
        classifier.fit(to_brightness(images[order]), labels[order], BATCH_SIZE, shuffle=False, verbose=0)
    return classifier


def probabilities(classifier: keras.Model, brightness: np.ndarray) -> np.ndarray:
    """The probability (N, classes) of every class for images given as brightness (N, H, W, C) in [0, 1]."""
    return softmax(classifier.predict(brightness, batch_size=1_000, verbose=0), axis=1)


def sure_share(probabilities: np.ndarray) -> float:
    """The share of images whose likeliest class has a probability above SURE, of probabilities (N, classes)."""
    return float((probabilities.max(axis=1) > SURE).mean())


def effective_classes(probabilities: np.ndarray) -> float:
    """How many classes there are among images with probabilities (N, classes), each counted as its likeliest class.

    exp of the entropy, in nats, of the shares: 1 if all look like one digit, 10 if ten digits are equally frequent.
    """
    shares = np.bincount(probabilities.argmax(axis=1)) / len(probabilities)
    return float(np.exp(entropy(shares)))
