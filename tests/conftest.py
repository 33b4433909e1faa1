"""What the tests of the experiments share."""

import json
from pathlib import Path

import pytest

import main
from experiments.study import make_study


@pytest.fixture(scope="session")
def quick_trainings(tmp_path_factory):
    """The trainings of all experiments' quick modes: what two of them need is made once."""
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="session")
def run_quick(tmp_path_factory, quick_trainings):
    """Run an experiment in its quick mode, in this process; return the folder of its figures, and its numbers."""

    def run(experiment) -> tuple[Path, dict]:
        name = experiment.__name__.rpartition(".")[2]
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(main, "xla_pays", lambda vae: False)  # compiling takes longer than trainings this small
            experiment.run(make_study(name, quick=True, images=folder)._replace(trainings=quick_trainings))
        return folder, json.loads((folder / f"{name}.json").read_text(), parse_constant=pytest.fail)  # NaN, infinity

    return run
