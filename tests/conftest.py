"""Slow tests are left out unless --slow is given; fixtures that the tests of the experiments share."""

import json
from pathlib import Path

import pytest

from experiments import classifier
from experiments.study import make_study
from tests.shared import set_xla
from utils import curves

LEFT_OUT = pytest.StashKey[int]()


# --- slow tests -------------------------------------------------------------------------------------------------------
def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")


@pytest.hookimpl(trylast=True)  # last, after -k and -m
def pytest_collection_modifyitems(config, items):
    """Leave out the slow tests, named or not, and remember how many they are."""
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    config.stash[LEFT_OUT] = len(slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the reporter, which writes its last line when a session ends
def pytest_sessionfinish(session):
    """Say in the last line how many slow tests were left out."""
    result = yield
    count = session.config.stash.get(LEFT_OUT, 0)
    if count:
        told = "1 slow test not run; --slow runs it" if count == 1 else f"{count} slow tests not run; --slow runs them"
        session.config.get_terminal_writer().line(told)
    return result


# --- experiments ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def quick_trainings(tmp_path_factory):
    """The folder of all quick trainings: one that two experiments need is made once."""
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="session")
def train_judge():
    """classifier.train_classifier, which trains once on the same images: all quick studies share a judge."""
    train, trained = classifier.train_classifier, {}

    def train_once(images, labels, seed):
        key = images.tobytes(), labels.tobytes(), seed
        if key not in trained:
            trained[key] = train(images, labels, seed)
        return trained[key]

    return train_once


@pytest.fixture(scope="session")
def run_quick(tmp_path_factory, quick_trainings, train_judge):
    """Run an experiment in its quick mode, in this process; return the folder of its figures, and its numbers."""

    def run(experiment) -> tuple[Path, dict]:
        name = experiment.__name__.rpartition(".")[2]
        folder = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            set_xla(patch)  # compiling takes longer than trainings this small
            patch.setattr(classifier, "train_classifier", train_judge)
            patch.setattr(curves, "save_curves", lambda path, *_, **__: path.touch())  # nobody looks at them
            experiment.run(make_study(name, quick=True, images=folder)._replace(trainings=quick_trainings))
        return folder, json.loads((folder / f"{name}.json").read_text(), parse_constant=pytest.fail)  # NaN, infinity

    return run
