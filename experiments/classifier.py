"""A small convolutional classifier of digits that judges samples.

Are they clear digits? Do all digits occur? How far are they from real images?
"""

import numpy as np
from scipy.special import softmax
from scipy.stats import entropy

from utils.batches import brightness
from utils.chance import initializers
from utils.console import waiting_bar
from utils.dataset import epoch_order, in_batches
from utils.start import keras

BATCH_SIZE = 256
PEAK_LEARNING_RATE = 6e-3
SURE = 0.95  # a sample is a clear digit if the probability of its digit is larger than this


def build_classifier(image_shape: tuple[int, ...], classes: int, seed: int) -> keras.Model:
    """Brightness (B, H, W, C) -> logits (B, classes), untrained; the weights follow from the seed."""
    glorot = initializers((seed,), 4)
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


def train_classifier(
    images: np.ndarray, labels: np.ndarray, seed: int, epochs: int = 2, rate: float = PEAK_LEARNING_RATE
) -> keras.Model:
    """Train a classifier on uint8 images (N, H, W, C) with integer labels (N,); it has max(labels) + 1 classes.

    It gives logits (B, classes) for float32 brightness (B, H, W, C) in [0, 1]; see brightness and probabilities.
    The same seed always gives the same classifier, because Keras's global generator is not used. The learning rate
    falls from `rate` to zero along a cosine, so that two epochs are enough.
    """
    classifier = build_classifier(images.shape[1:], int(labels.max()) + 1, seed)
    steps = epochs * -(-len(images) // BATCH_SIZE)
    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # convolutions under XLA on a CPU are 50 times slower
    )
    with waiting_bar("classifier", steps) as bar:
        move = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
        for epoch in range(epochs):
            order = epoch_order(len(images), (seed, epoch))
            classifier.fit(
                brightness(images[order]), labels[order], BATCH_SIZE, verbose=0, callbacks=[move], shuffle=False
            )
    return classifier


def probabilities(classifier: keras.Model, brightness: np.ndarray) -> np.ndarray:
    """The probability (N, classes) of every class for images given as brightness (N, H, W, C) in [0, 1]."""
    return softmax(classifier.predict(brightness, batch_size=1_000, verbose=0), axis=1)


def sure_share(probabilities: np.ndarray) -> float:
    """The share of images whose likeliest class has a probability above SURE; probabilities are (N, classes)."""
    return float((probabilities.max(axis=1) > SURE).mean())


def effective_classes(probabilities: np.ndarray) -> float:
    """How many classes occur among images with probabilities (N, classes); each image counts as its likeliest class.

    It is exp of the entropy, in nats, of the shares: 1 if all look like one digit, 10 if ten are equally frequent.
    """
    shares = np.bincount(probabilities.argmax(axis=1)) / len(probabilities)
    return float(np.exp(entropy(shares)))


# --- the distance of two sets of images -------------------------------------------------------------------------------
def features(classifier: keras.Model, brightness: np.ndarray) -> np.ndarray:
    """The outputs (N, F) of the classifier's last hidden layer, for brightness (N, H, W, C) in [0, 1]."""
    network = keras.Model(classifier.inputs[0], classifier.get_layer("features").output)
    return in_batches(lambda batch, start: (network(batch),), brightness, doing="judging")[0]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Frechet distance of two sets of features (N, F) and (M, F), taken as Gaussians; N and M at least 2.

    It is |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with means and covariances (Heusel et al. 2017, arXiv
    1706.08500, eq. 6). It is 0 if these are equal, and has no unit. Two samples of one distribution have a distance
    too, and smaller samples have a larger one. So compare sets of the same size, and give the distance of two sets of
    real images as the floor.

    The distance depends on the classifier: only distances from the same classifier compare. The "FID" of papers uses
    the features of Inception, trained on photographs, so it does not compare with this one.
    """
    a, b = np.float64(a), np.float64(b)
    roots = []
    for cloud in (a, b):
        variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(cloud, rowvar=False)))
        roots.append(axes * np.sqrt(np.maximum(variances, 0)))  # R with R R^T = C; rounding may make a 0 negative
    # The trace of (C_a C_b)^(1/2) is the sum of the singular values of R_a^T R_b. This avoids the square root of the
    # matrix C_a C_b. That root breaks if the matrix is nearly singular, for example if some features are always 0.
    overlap = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots) - 2 * overlap
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + max(spread, 0))


def frechet_distances(classifier: keras.Model, sets: dict[str, np.ndarray], real: np.ndarray) -> dict[str, float]:
    """The distance of each set of images, brightness (N, H, W, C) by name, from real images with features (M, F)."""
    return {name: frechet_distance(features(classifier, images), real) for name, images in sets.items()}
