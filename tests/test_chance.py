"""utils/chance.py: a key for each draw, and draws from N(0, 1)."""

import numpy as np
import pytest
from scipy.stats import kstest

from tests.tiny import drawn
from utils import chance
from utils.start import tf


def test_every_seed_purpose_and_step_has_a_key_of_its_own():
    purposes = [
        chance.ENCODER_WEIGHTS,
        chance.DECODER_WEIGHTS,
        chance.SHUFFLE,
        chance.PIXELS,
        chance.NOISE,
        chance.TEST_NOISE,
    ]
    purposes += [chance.GRID_LATENTS, chance.IMPORTANCE_NOISE]
    steps = (0, 1, 2, 16, 17, 10**6, 2**31 - 1)
    asked = [(seed, purpose, step) for seed in (0, 1, 2, 16, 2**31 - 1) for purpose in purposes for step in steps]
    assert len({tuple(chance.random_key(*key).numpy()) for key in asked}) == len(asked)
    np.testing.assert_array_equal(chance.random_key(tf.constant(5), 3, tf.constant(9)), chance.random_key(5, 3, 9))


@pytest.mark.parametrize("compiled", [False, True])
def test_noise_is_standard_normal(compiled):
    keys = [chance.random_key(0, chance.NOISE, step) for step in (0, 0, 1)]
    noise, same, other = (drawn(chance.standard_normal, (20_000,), key, compiled=compiled) for key in keys)
    assert kstest(noise, "norm").pvalue > 1e-4
    assert (noise == same).all()
    assert not (noise == other).any()
