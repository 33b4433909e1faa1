"""README.md and docs/: the links, pictures, commands and names in them exist."""

import json
import re
import subprocess
import sys

import pytest

import params
from experiments.all import EXPERIMENTS
from tests.shared import REPOSITORY, users_environment

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
OTHER_NAMES = {"DECODERS", "TF_CONFIG"}  # names of main.py and TensorFlow, not constants


def named(page):
    return page.relative_to(REPOSITORY).as_posix()


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_and_picture_exists(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_picture_has_a_text_for_those_who_do_not_see_it(page):
    assert not re.findall(r"!\[\s*\]\(", page.read_text())


def test_every_page_is_linked_from_the_readme_and_so_is_every_figure_from_a_page():
    readme = PAGES[0].read_text()
    assert [named(page) for page in PAGES[1:] if f"({named(page)})" not in readme] == []
    text = "".join(page.read_text() for page in PAGES)
    pictures = [path for path in (REPOSITORY / "images").iterdir() if path.suffix != ".json"]
    assert [path.name for path in pictures if f"images/{path.name})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_constant_that_is_named_exists(page):
    """A constant is a word in capitals in `code`, alone or before its value."""
    names = set(re.findall(r"`([A-Z][A-Z0-9_]{3,})(?: = [^`]*)?`", page.read_text())) - OTHER_NAMES
    assert [name for name in sorted(names) if not hasattr(params, name)] == []


def test_the_readme_is_one_page():
    assert len(PAGES[0].read_text().splitlines()) <= 250
    assert PAGES[0].stat().st_size <= 18 * 1024


MODULES = sorted({name for page in PAGES for name in re.findall(r"python -m (experiments\.\w+)", page.read_text())})


@pytest.mark.slow
@pytest.mark.parametrize("words", [["main.py"], *(["-m", module] for module in MODULES)], ids=" ".join)
def test_every_command_has_help(words):
    done = subprocess.run([sys.executable, *words, "--help"], cwd=REPOSITORY, env=users_environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_option_that_is_given_exists(page):
    """The options of python main.py: the constants and a few of its own."""
    commands = re.findall(r"python main\.py((?:[^`\n\\]|\\\n)*)", page.read_text())
    options = {option for command in commands for option in re.findall(r"--([a-z-]+)", command)}
    unknown = {option for option in options if not hasattr(params, option.replace("-", "_").upper())}
    assert unknown <= {"resume", "help"}


# --- numbers ----------------------------------------------------------------------------------------------------------
NOT_IN_THE_JSON = {  # numbers of the Analysis from other sources, or computed from other numbers
    "losses": {"7,400", "0.0148", "2.56", "0.067", "0.105"},  # steps and KL are in the figures MSE_2 and AD_1
    "kl_weight": {"3,744", "250"},  # the steps of a training, and of a ramp
    "architecture": {"4.5"},  # a difference
}


def numbers_in(value):
    """All numbers in a JSON value, including those in texts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers_in(part)]
    if isinstance(value, str):
        return [float(word.replace(",", "")) for word in re.findall(r"\d[\d,]*\.?\d*", value)]
    return [float(value)] if isinstance(value, int | float) else []


def numbers_of_prose(text):
    """The numbers of a Markdown text that have a point or at least three digits, without years, links and tables."""
    for noise in (r"<!-- table.*?<!-- end -->", r"\]\(.*?\)", r"^    .*?$", r"(?:et al\.|&) [^).]*?\d{4}"):
        text = re.sub(noise, "", text, flags=re.DOTALL | re.MULTILINE)
    words = re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?", text)
    return {word.rstrip(",") for word in words if "." in word or len(word.rstrip(",")) > 2}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_number_of_the_analysis_stands_in_its_json(name):
    """Rounded as it is printed, as a share or in percent."""
    sections = re.split(r"^## (?=\d\. )", (REPOSITORY / "docs" / "analysis.md").read_text(), flags=re.MULTILINE)[1:]
    text = sections[EXPERIMENTS.index(name)]
    known = numbers_in(json.loads((REPOSITORY / "images" / f"{name}.json").read_text()))

    def stands(word):
        digits, number = len(word.partition(".")[2]), float(word.replace(",", ""))
        return any(round(abs(scale * value), digits) == number for value in known for scale in (1, 100))

    unknown = {word for word in numbers_of_prose(text) if not stands(word)}
    assert unknown == NOT_IN_THE_JSON.get(name, set())


def test_every_number_of_the_findings_in_the_readme_stands_in_the_analysis():
    readme, analysis = PAGES[0].read_text(), (REPOSITORY / "docs" / "analysis.md").read_text()
    findings = re.search(r"^## What the Analysis found\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)[1]
    assert numbers_of_prose(findings)
    assert numbers_of_prose(findings) - numbers_of_prose(analysis) == set()
