"""Slow tests are left out, and the last line says how many."""

from pathlib import Path

import pytest

pytest_plugins = "pytester"
TESTS = """
import pytest

def test_fast():
    pass

@pytest.mark.slow
def test_slow():
    pass

@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_another(number):
    pass
"""


@pytest.mark.parametrize(
    ("words", "passed", "told"),
    [
        ("", 1, "4 slow tests not run; --slow runs them"),
        ("-k another", 0, "3 slow tests not run; --slow runs them"),
        ("test_toy.py::test_slow", 0, "1 slow test not run; --slow runs it"),
        ("-k fast", 1, None),
        ("--slow", 5, None),
        ("--slow -m slow", 4, None),
    ],
)
def test_the_last_line_says_how_many_slow_tests_were_not_run(words, passed, told, pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins take a second each
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\naddopts = "-q"\nmarkers = ["slow"]')
    pytester.makepyfile(test_toy=TESTS)
    result = pytester.runpytest_inprocess(*words.split())
    assert result.ret == (pytest.ExitCode.OK if passed else pytest.ExitCode.NO_TESTS_COLLECTED)
    assert len(result.reprec.listoutcomes()[0]) == passed
    assert [line for line in result.outlines if "not run" in line] == ([told] if told else [])
    assert told in (None, result.outlines[-1])
