"""experiments/architecture.py, in its quick mode."""

import pytest
from PIL import Image

from experiments import architecture


@pytest.mark.slow
def test_networks_are_measured_and_drawn(run_quick):
    folder, numbers = run_quick(architecture)
    measured = numbers["measured"]
    two_layers = 784 * 64 + 64 + 64 * 64 + 64 + 64 * 40 + 40 + 20 * 64 + 64 + 64 * 64 + 64 + 64 * 784 + 784
    assert measured["width"]["64"]["parameters"] == two_layers
    assert measured["depth"]["0"]["parameters"] == 784 * 40 + 40 + 20 * 784 + 784  # a linear encoder and decoder
    assert measured["latents"]["2"]["active"]["mean"] <= 2
    assert len(measured["latents"]["20"]["kl_per_latent"]) == 20
    for values in measured.values():
        for numbers in values.values():
            assert numbers["nll"]["mean"] < -numbers["elbo"]["mean"]  # the tighter bound
            assert numbers["kl_per_latent"] == sorted(numbers["kl_per_latent"], reverse=True)
            assert sum(numbers["kl_per_latent"]) == pytest.approx(numbers["kl"]["mean"], rel=1e-4)
    assert measured["latents"]["20"]["elbo"]["mean"] > measured["latents"]["2"]["elbo"]["mean"]
    with Image.open(folder / "architecture.png") as picture:
        assert picture.width > 900
