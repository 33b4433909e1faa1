"""experiments/fingerprint.py: which changes of code and settings make finished work stale, and which do not."""

import importlib
import importlib.util
import inspect
import sys

import pytest
from pydantic import create_model

import experiments.fingerprint
from experiments import likelihood, losses, new_label, samples, side_by_side
from experiments.fingerprint import ROOT, code_of, files_of, modules_of, settings_that_count, sources
from tests.shared import OURS
from utils.settings import BEFORE, from_params, read_constants

PROJECT = {  # main.py -> near -> middle -> far and others, by all kinds of import
    "main.py": "import numpy as np\nimport utils.near",
    "utils/near.py": "from utils import middle",
    "utils/middle.py": (
        "from typing import TYPE_CHECKING\n"
        "def work():\n    from utils.far import VALUE\n    return VALUE\n"
        "if TYPE_CHECKING:\n    import utils.typed\n"
        "if __name__ == '__main__':\n    from experiments import tool as it\n"
        "from . import beside\n"
    ),
    "utils/far.py": "VALUE = 1\nimport utils.near  # a circle",
    "utils/typed.py": "VALUE = 1",
    "utils/beside.py": "from ..utils.part.leaf import *",
    "utils/part/__init__.py": "VALUE = 1",
    "utils/part/leaf.py": "VALUE = 1",
    "experiments/tool.py": "VALUE = 1",
    "utils/alone.py": "import main",
    "elsewhere.py": "VALUE = 1",
    "numpy.py": "VALUE = 1",
}
NOT_IMPORTED = {"utils/alone.py", "elsewhere.py", "numpy.py"}


@pytest.fixture
def project(tmp_path):
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", PROJECT)
def test_a_change_counts_in_any_file_that_is_imported_however_far_away_and_in_no_other(project, name):
    before = code_of("main", root=project)
    (project / name).write_text(f"{PROJECT[name]}\nMORE = 2")
    assert (code_of("main", root=project) == before) == (name in NOT_IMPORTED)


def test_the_files_are_those_of_all_modules_asked_for(project):
    found = {path.relative_to(project).as_posix() for path in files_of("main", root=project)}
    assert found == PROJECT.keys() - NOT_IMPORTED
    more = {path.relative_to(project).as_posix() for path in files_of("utils.alone", root=project)}
    assert more == found | {"utils/alone.py"}
    with pytest.raises(KeyError, match=r"utils\.typo"):
        code_of("utils.typo", root=project)


CODE = '''"""A module."""
RATE = 0.1


def double(x: int) -> int:
    """Twice x."""
    return 2 * x


class Box:
    """A box."""

    async def open(self):
        """Open it."""
        return "a text"
'''


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ('"""A module."""\n', "", False),
        ("Twice x.", "Two times x.", False),
        ("A box.", "A case,\n\n    of wood.", False),
        ('        """Open it."""\n', "", False),
        ("RATE = 0.1", "RATE = (0.1)  # per step\n\n# a rate", False),
        ("2 * x", "(2*\n        x)", False),
        ("0.1", "0.2", True),
        ("2 * x", "x * 2", True),
        ("a text", "another text", True),
        ("    return 2 * x", '    """No docstring: the second text."""\n    return 2 * x', True),
    ],
)
def test_docstrings_comments_and_formatting_do_not_count_and_code_does(project, old, new, stale):
    far = project / "utils" / "far.py"
    far.write_text(CODE)
    before = code_of("main", root=project)
    assert CODE.count(old) == 1
    far.write_text(CODE.replace(old, new))
    assert (code_of("main", root=project) != before) == stale


def test_main_and_evaluate_rest_on_the_networks_and_on_adam():
    wanted = {ROOT / "main.py", ROOT / "utils" / "networks.py", ROOT / "utils" / "workers.py"}
    assert wanted <= files_of("main").keys()
    assert wanted | {ROOT / "experiments" / "classifier.py"} <= files_of("experiments.evaluate").keys()
    assert ROOT / "experiments" / "classifier.py" not in files_of("main")


@pytest.mark.parametrize("start", ["main", "experiments.evaluate", "experiments.new_label"])
def test_what_the_modules_of_the_project_hold_when_imported_is_from_files_that_count(start):
    names = {path: name for name, path in modules_of().items()}
    files = files_of(start).keys()
    for path in files:
        for value in vars(importlib.import_module(names[path])).values():
            if module := inspect.getmodule(value):
                origin = modules_of().get(module.__name__)
                assert origin is None or origin in files


# --- a function of an experiment --------------------------------------------------------------------------------------
def test_a_watch_is_known_by_all_that_it_uses():
    found = sources(new_label.embed, {})
    here = "experiments.new_label"
    own, modules = ("embed", "held_out", "HELD_OUT", "TEST_BINARIZATION_KEY"), ("batches", "dataset", "mnist")
    assert {"main", *(f"{here}.{name}" for name in own), *(f"utils.{name}" for name in modules)} == set(found)
    assert found[f"{here}.HELD_OUT"] == "300"
    assert found["utils.mnist"] == code_of("utils.mnist")
    found = sources(losses.progress, {})
    assert {"experiments.samples.prior_samples", "experiments.losses.JUDGED", "main"} <= set(found)
    assert "experiments.classifier" not in found
    assert "experiments.classifier" in sources(samples.judge_samples, {})
    assert "utils.start" in sources(side_by_side.use_one_thread, {})  # it is imported inside the function


EXPERIMENT = '''
from typing import NamedTuple
from utils import dataset as images
from utils import data as images
from utils.pictures import grid
from utils.likelihood import LOG_2_PI
from utils.report import ACTIVE_VARIANCE

SHOWN, WIDTH = 10, 4
SIZES = [1, 2]


class Pair(NamedTuple):
    """Two."""

    first: int = 1

    def sizes(self):
        return SIZES


def watch(vae, settings, dataset):
    """Watch."""
    import main
    return {"z": helper(main.decode(vae)), "c": LOG_2_PI}


def helper(x):
    """Help."""
    return [grid(row, Pair()) for row in x[:SHOWN]]


def draw(x):
    return images.binarize(x) * WIDTH
'''


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ('"""Watch."""', '"""Look."""  # closely', False),
        ('    """Help."""\n', "", False),
        ("* WIDTH", "+ WIDTH", False),
        ("WIDTH = 10, 4", "WIDTH = 10, 5", False),
        ("WIDTH = 10, 4", "WIDTH = 11, 4", True),
        ('"z":', '"y":', True),
        ("row in x", "row in 2 * x", True),
        ("first: int = 1", "first: int = 2", True),
        ("SIZES = [1, 2]", "SIZES = [1, 3]", True),
        ("    import main", "    import main\n    from experiments import classifier", True),
        ("utils.pictures import grid", "utils.files import write_json as grid", True),
    ],
)
def test_a_function_is_stale_when_what_it_uses_is_another_and_not_when_the_rest_of_its_file_is(
    tmp_path, monkeypatch, old, new, stale
):
    def known_by(text: str) -> list[str]:
        path = tmp_path / f"{abs(hash(text))}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("experiments.made_up", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        found = sources(module.watch, {})
        assert "utils.dataset" not in found
        return list(found.values())

    assert EXPERIMENT.count(old) == 1
    assert (known_by(EXPERIMENT) != known_by(EXPERIMENT.replace(old, new))) == stale


# --- settings ---------------------------------------------------------------------------------------------------------
def test_settings_count_but_for_places_and_constants_that_do_what_was_done_before():
    plain = settings_that_count(from_params())
    assert settings_that_count(from_params(output_dir="a", data_dir="b", run_name="c")) == plain
    others = ({"seed": 1}, {"start_from": "a"}, {"latent_dim": 3}, {"architecture": "conv"}, {"channels": (8,)})
    assert len({plain, *(settings_that_count(from_params(**other)) for other in others)}) == len(others) + 1


def test_a_constant_that_is_added_later_renames_nothing(monkeypatch):
    made = from_params()
    before = settings_that_count(made)
    more = create_model("Settings", __base__=type(made), added=(tuple[int, ...], (1, 2)))
    assert settings_that_count(more()) != before
    monkeypatch.setitem(BEFORE, "added", (1, 2))
    assert settings_that_count(more()) == before
    assert settings_that_count(more(added=(1, 3))) != before


def test_a_constant_that_nothing_reads_renames_nothing(monkeypatch):
    made = from_params()
    more = create_model("Settings", __base__=type(made), added=(float, 0.5))
    monkeypatch.setattr(experiments.fingerprint, "unread", lambda: ["added"])
    assert settings_that_count(more(added=2.0)) == settings_that_count(made)


def test_the_rows_of_the_table_have_the_names_from_before_constants_were_added(monkeypatch):
    """The names of commit 803fe99, whatever constants a user has added."""
    for name in read_constants().keys() - OURS:
        monkeypatch.setitem(BEFORE, name, read_constants()[name].value)
    names = [stage.run_name for stage in likelihood.stages_of("best", likelihood.read_command_line(["best"]))]
    assert names == ["mnist-ce-z40-realnvp-380fb7e4", "mnist-ce-z40-realnvp-dreg8-05c5e7b2"]
