"""Each module can be read without those above it: imports form no circle, and utils/ imports no program."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from experiments.fingerprint import imports_of, modules_of
from tests.shared import REPOSITORY


def imports_in(root):
    """The modules of a project that each module imports, by its name, including imports within functions."""
    modules = modules_of(root)
    trees = {name: ast.parse(path.read_text()) for name, path in modules.items()}
    return {
        name: imports_of(tree, modules[name].relative_to(root).parts[:-1]) & modules.keys()
        for name, tree in trees.items()
    }


def circle(imports):
    """The modules along a circle of imports, with the first one again at the end; [] if there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def upward(imports):
    """The modules of utils/ that import main or an experiment."""
    programs = {name for name in imports if name == "main" or name.startswith("experiments.")}
    return sorted(name for name in imports if name.startswith("utils.") and imports[name] & programs)


def test_imports_form_no_circle_and_utils_imports_no_program():
    imports = imports_in(REPOSITORY)
    assert {"utils.data", "utils.recorder"} <= imports["main"]
    assert circle(imports) == []
    assert upward(imports) == []


@pytest.mark.parametrize(("imports", "expected"), [
    ({}, set()),
    ({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}, set()),
    ({"a": {"a"}}, {"a"}),
    ({"a": {"b"}, "b": {"a"}}, {"a", "b"}),
    ({"a": {"b"}, "b": {"c", "e"}, "c": {"d"}, "d": {"b"}, "e": set()}, {"b", "c", "d"}),
])  # fmt: skip
def test_a_circle_is_found_wherever_it_is(imports, expected):
    assert set(circle(imports)) == expected


@pytest.mark.parametrize("line", [
    "import utils.b", "from utils import b", "from utils.b import f", "from . import b",
    "def f():\n    from utils import b", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import utils.b",
])  # fmt: skip
def test_an_import_counts_wherever_it_stands(tmp_path, line):
    for name, text in (("main", "import utils.a"), ("utils/a", line), ("utils/b", "import utils.c"), ("utils/c", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    assert circle(imports_in(tmp_path)) == upward(imports_in(tmp_path)) == []
    (tmp_path / "utils/c.py").write_text("import main\nfrom utils.a import f")
    assert set(circle(imports_in(tmp_path))) - {"main"} == {"utils.a", "utils.b", "utils.c"}
    assert upward(imports_in(tmp_path)) == ["utils.c"]


def test_the_door_needs_no_tensorflow():
    code = "import sys, utils.data, utils.door; print({'tensorflow', 'keras', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "{'numpy'}\n"
