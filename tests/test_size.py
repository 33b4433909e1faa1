"""utils/size.py: the size of a VAE against one that is built, and the message when memory can't hold it."""

import math
import re
import resource
import sys

import pytest

import main
from tests.tiny import SHAPE, TINY
from utils import size
from utils.settings import SettingsError, from_params
from utils.start import keras

CHANGES = [
    {},
    {"architecture": "conv", "channels": (4, 8)},
    {"architecture": "resnet", "channels": (4, 8), "residual_blocks": 2},
    {"loss": "mse", "decoder_scale": "learned", "noise_dim": 3},
    {"prior": "vampprior", "prior_components": 7},
    {"prior": "mixture", "prior_components": 7},
    {"prior": "realnvp", "prior_layers": 3},
    {"encoder_layers": (), "mixed_precision": True},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_parameters_are_counted_as_they_are_built(changes):
    s = from_params(**TINY | changes)
    built = main.build_vae(s, SHAPE)
    assert size.count_parameters(main.build_vae, s, SHAPE) == sum(math.prod(weight.shape) for weight in built.weights)


def test_counting_takes_no_memory():
    s = from_params(**TINY | {"encoder_layers": (60_000, 60_000), "prior": "vampprior", "prior_components": 60_000})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kilobytes
    found = size.count_parameters(main.build_vae, s, (28, 28, 1))
    assert found > 784 * 60_000 + 60_000**2 + 60_000 * 784
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"encoder_layers": (40,)}, "encoder_layers"),
        ({"decoder_layers": (40,)}, "decoder_layers"),
        ({"latent_dim": 400}, "latent_dim"),
        ({"architecture": "conv", "channels": (40, 40), "prior_components": 10**4}, "channels"),
        ({"architecture": "resnet", "channels": (40,), "residual_blocks": 9}, "channels"),
        ({"prior": "mixture", "prior_components": 10**4}, "prior_components"),
        ({"dataset": "folder", "image_size": 64}, "image_size"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_constant_to_lower(changes, name, monkeypatch):
    s = from_params(**TINY | changes)
    shape = (64, 64, 3) if name == "image_size" else (8, 8, 1)
    count = size.count_parameters(main.build_vae, s, shape)
    needed = count * 16  # bytes: weights, gradients, both moments of Adam
    monkeypatch.setattr(size, "memory", lambda: needed - 1)
    with pytest.raises(SettingsError) as raised:
        size.check_fits(main.build_vae, s, shape, pytest.fail)
    value = re.escape(repr(getattr(s, name)))
    assert re.fullmatch(
        rf"{name}: {value} is not allowed; [\d.]+ M parameters need \d+ MB or more, .*; lower it", str(raised.value)
    )
    said = []
    monkeypatch.setattr(size, "memory", lambda: needed)
    size.check_fits(main.build_vae, s, shape, said.append)
    assert said == [
        f"building   {count / 1e6:.1f} M parameters, {needed / 1e6:.0f} MB with gradients and Adam's moments"
    ]


def test_networks_that_cannot_be_counted_are_built_all_the_same(monkeypatch):
    def build(s, image_shape):
        raise ValueError("a variable that is made from an array")

    said = []
    size.check_fits(build, from_params(), SHAPE, said.append)
    assert said == ["building   a network whose size is not known before it is built"]


def test_memory_is_that_of_the_machine_or_of_the_container_if_that_has_less(monkeypatch, tmp_path):
    monkeypatch.setattr(size, "LIMITS", (str(tmp_path / "one"), str(tmp_path / "two")))
    machine = size.memory()
    assert 10**8 < machine < 10**15
    (tmp_path / "one").write_text("max\n")
    assert size.memory() == machine
    (tmp_path / "two").write_text("1000000\n")
    assert size.memory() == 10**6
    (tmp_path / "two").unlink()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: {resource.RLIMIT_DATA: (2_000_000, -1)}.get(kind, (-1, -1)))
    assert size.memory() == 2_000_000
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert size.memory() == math.inf


def test_sizes_in_words():
    assert [size.in_bytes(count) for count in (21_771_136, 999_400_000, 58.4e9)] == ["22 MB", "999 MB", "58.4 GB"]


@pytest.mark.parametrize(
    ("changes", "shape", "expected"),
    [
        ({"encoder_layers": (512,), "decoder_layers": (512,)}, (28, 28, 1), 1_000),
        ({"architecture": "conv", "channels": (32, 64, 128)}, (28, 28, 1), 1_000),
        ({"architecture": "resnet", "channels": (32, 64, 128)}, (28, 28, 1), 1_000),
        ({"architecture": "conv", "channels": (4,)}, (64, 64, 3), 784_000 // (64 * 64 * 3)),
        # A kernel at stride 2 halves the maps: it takes 14 x 14 x 2,000 and returns 28 x 28 x 2,000.
        ({"architecture": "conv", "channels": (2_000, 2_000)}, (28, 28, 1), 2**26 // (2_000 * (14**2 + 28**2))),
        ({"decoder_layers": (60_000, 60_000)}, (4, 2, 2), 2**26 // 120_000),
        ({"prior": "mixture", "prior_components": 60_000}, (4, 2, 2), 2**26 // 360_000),
        ({"architecture": "conv", "channels": (64, 64)}, (1_024, 1_024, 3), 1),
    ],
)
def test_images_are_worked_on_at_a_time_as_many_as_the_widest_layer_lets(changes, shape, expected):
    s, found = from_params(**TINY | changes), []

    def build(s, shape):
        found.append(size.at_once(vae := main.build_vae(s, shape)))
        return vae

    size.count_parameters(build, s, shape)  # this takes no memory
    assert found == [expected]


def test_layers_of_ones_own_need_no_shapes():
    class Own(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.within = keras.layers.Dense(3)

        def call(self, x):
            return self.within(x)

    x = keras.Input((5,))
    network = keras.Model(x, Own()(x))
    assert size.most_at_once(network) == 2**26 // 8
    assert size.most_at_once(keras.Model(x, keras.ops.concatenate([x, x, x], axis=1))) == 2**26 // (3 * 5 + 15)
    assert size.most_at_once(keras.Sequential([keras.Input((5,)), keras.layers.Dense(9)])) == 2**26 // 14
