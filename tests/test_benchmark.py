"""The benchmark: what it measures is checked, its speed is not."""

import argparse
import json
import math

import pytest

import main
from experiments import benchmark
from utils.settings import from_params


def test_flops_are_those_of_the_networks():
    """A product of B rows with a kernel is a multiplication and an addition per entry and row; training makes three of
    them, but for the first kernel, as nobody needs the gradient with respect to the pixels."""
    layers = benchmark.HIDDEN
    settings = from_params(encoder_layers=layers, decoder_layers=layers, latent_dim=benchmark.LATENTS)
    kernels = [math.prod(w.shape) for w in main.build_vae(settings, (28, 28, 1)).weights if len(w.shape) == 2]
    assert benchmark.flops_per_image() == 6 * sum(kernels) - 2 * 784 * 500


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    """Not the ratio of the medians, which would be 150 / 100 here: a slow moment slows both sides of a round."""
    speeds = [(100, 50), (300, 100), (150, 150), (900, 100), (40, 20)]
    rounds = [
        {
            "ours": {"images_per_second": ours, "objective": 90.0},
            "torch": {"images_per_second": torch, "objective": 90.2},
            "gemm": {"gflops_per_second": 1e-9 * benchmark.flops_per_image() * 1000},
        }
        for ours, torch in speeds
    ]
    ours, torch, *_, limit = benchmark.table(rounds)[1:]
    assert ours.split() == ["ours", "150", "(100-300)", "90.00"]
    assert torch.split() == ["PyTorch", "eager", "100", "(50-100)", "2.00", "(2.00-3.00)", "90.20"]
    assert limit.split() == ["limit", "1,000", "(1,000-1,000)", "ours", "reaches", "15", "(10-30)", "percent"]

    rounds[-1]["torch"]["objective"] = 120.0
    assert any("not identical work" in line for line in benchmark.table(rounds))


def test_contenders_run_and_learn_the_same(tmp_path, monkeypatch, capsys):
    """Those that requirements.txt installs; another is named. By the 60th step the objective has more than halved, so
    that contenders which do different work lie further apart than is let pass."""
    monkeypatch.setattr(benchmark, "OUTPUT", tmp_path / "benchmark.json")
    monkeypatch.setattr(benchmark, "CONTENDERS", benchmark.CONTENDERS | {"torch": (None, "no_such_package", "PyTorch")})
    benchmark.main(["--rounds", "2", "--steps", "20", "--only", "gemm", "ours", "keras", "torch"])
    printed = capsys.readouterr().out
    assert "PyTorch: not installed, skipped" in printed
    assert "not identical work" not in printed
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert [set(results) for results in written["rounds"]] == 2 * [{"gemm", "ours", "keras"}]
    assert all(results["ours"]["objective"] < 28 * 28 * math.log(2) / 2 for results in written["rounds"])


def test_a_failing_contender_tells_why():
    args = argparse.Namespace(steps=1, batch_size=1, threads=1)
    failure = pytest.raises(SystemExit, match=r"nobody failed with exit code 2(.|\n)*invalid choice: 'nobody'")
    with failure, benchmark.worker("nobody", args):
        pass
