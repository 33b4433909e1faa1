"""What benchmark.py and whole_run.py share: the loop that they time, cores, environment variables, quartiles."""

import os

import numpy as np

IMAGES = 60_000  # of an epoch


def our_loop(images, settings):
    """The loop of main.py as it is: one call trains an epoch while the next one is drawn."""
    import main as project
    from utils.batches import of_run
    from utils.start import tf

    images = images.reshape(-1, 28, 28, 1)
    vae = project.build_vae(settings, images.shape[1:])
    optimizer = project.build_optimizer(vae, settings, horizon=1)
    train_steps = project.compile_train_steps(vae, optimizer, settings)
    steps_per_epoch = len(images) // settings.batch_size

    def train(epochs):
        step = int(optimizer.iterations)
        until = settings.model_copy(update={"epochs": step // steps_per_epoch + epochs})
        for first, end, batches in of_run(images, until, step):
            steps = (tf.constant(number) for number in (first, first, end))
            sums, _, _ = train_steps(batches, *steps, tf.zeros(3))
        return float(sums[0]) / steps_per_epoch

    return train, lambda: (vae.encoder.get_weights(), vae.decoder.get_weights())


def usable_cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment():
    """The environment variables of a contender's process."""
    # These choose kernels and how XLA compiles. If they are set for another purpose, the comparison is not fair.
    tilting = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in tilting}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}


def spread(values, digits=0):
    """The median, and in brackets the quartiles: half of the rounds lie between them."""
    low, median, high = (f"{quartile:,.{digits}f}" for quartile in np.percentile(values, (25, 50, 75)))
    return f"{median} ({low}-{high})"
