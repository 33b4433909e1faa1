"""Regenerate every figure and number of the Analysis, docs/analysis.md.

    python -m experiments.all

Runs the experiments one after the other, each in its own process. It skips an experiment that this code has already
finished with this seed; a file in predictions/analysis/ marks it. You can stop at any time: the same command continues.
"""

import json
import subprocess
import sys

from experiments.study import ROOT, Study, is_finished, mark, read_command_line

EXPERIMENTS = (
    "losses", "kl_weight", "architecture", "latent_space",
    "new_label", "noise_latents", "sample_quality", "loss_claims",
)  # fmt: skip


def command(study: Study) -> list[str]:
    """The command that runs one experiment with the options of this study."""
    words = [sys.executable, "-m", f"experiments.{study.name}", "--seed", str(study.seed), "--jobs", str(study.jobs)]
    return [*words, "--images", str(study.images), *(["--quick"] if study.quick else [])]


def run(words: list[str]) -> int:
    """Run a command to its end and return its exit code. After Ctrl-C, which it receives too, wait while it saves."""
    process = subprocess.Popen(words, cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def main(study: Study) -> int:
    """Run the unfinished experiments; return the exit code of the first that fails, or 0."""
    for name in EXPERIMENTS:
        one = study._replace(name=name)
        if is_finished(one):
            print(f"{name}: finished before")
            continue
        if code := run(command(one)):
            print(f"{name}: stopped with exit code {code}; the same command goes on from here", file=sys.stderr)
            return code
    # If an experiment was stopped and continued, its minutes count the last part only.
    minutes = [
        json.loads(mark(study._replace(name=name)).read_text(encoding="utf-8"))["seconds"] / 60 for name in EXPERIMENTS
    ]
    for name, spent in zip(EXPERIMENTS, minutes, strict=True):
        print(f"{name:<14} {spent:5.1f} minutes")
    print(f"{'all':<14} {sum(minutes):5.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main(read_command_line("all", __doc__)))
