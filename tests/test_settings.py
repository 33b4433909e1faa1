"""utils/settings.py: messages about params.py and the command line, and the settings that valid ones give."""

import contextlib
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import StringConstraints, ValidationError

from tests.shared import OURS
from utils import settings as settings_module
from utils.settings import (
    BEFORE,
    LEARNED_WIDTH,
    PARAMS,
    Command,
    Settings,
    SettingsError,
    allowed,
    from_params,
    load_saved,
    ramp_end,
    read_command_line,
    read_constants,
    resumed,
    unread,
    unread_notes,
    with_kl_steps,
)

SOURCE = PARAMS.read_text(encoding="utf-8")
NAMES = re.findall(r"^([A-Z][A-Z0-9_]*):", SOURCE, re.MULTILINE)
DATASETS = (
    "'mnist', 'fashion_mnist', 'celeba', 'folder' or 'arrays', or a name of TensorFlow Datasets as in 'tfds:cifar10'"
)
LOSSES = " or ".join(
    ", ".join(map(repr, get_args(settings_module.settings_model().model_fields["loss"].annotation))).rsplit(", ", 1)
)
NAME_RULE = "a name of letters, digits, '_', '-' and '.' that starts with neither '-' nor '.'"
LATENTS, WIDTHS = "an integer from 1 to 4,096", "integers from 1 to 65,536"
POSITIVE = "an integer of at least 1 and less than 2,147,483,648"
UP_TO_A_MILLION = "a finite number from 0 to 1,000,000"
FLAG = "--autoencoder takes no value; it is a flag: --autoencoder turns it on, --no-autoencoder off"


def edited(folder: Path, pattern: str, new: str) -> Path:
    """A copy of params.py in which the first match of the pattern is replaced."""
    text, count = re.subn(pattern, new, SOURCE, count=1, flags=re.MULTILINE)
    assert count == 1
    path = folder / "params.py"
    path.write_text(text, encoding="utf-8")
    return path


def with_value(folder: Path, name: str, value: str) -> Path:
    return edited(folder, rf"^({name}: .+?) = .+?(?=  #)", rf"\1 = {value}")


def line_of(name: str) -> int:
    return next(number for number, line in enumerate(SOURCE.split("\n"), 1) if line.startswith(f"{name}:"))


def run(argv: list[str], params: Path = PARAMS) -> tuple[Command | int, str]:
    """The command or the exit code, and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            return read_command_line(argv, params=params), printed.getvalue()
        except SystemExit as end:
            return end.code, printed.getvalue()


def told(argv: list[str], params: Path = PARAMS) -> str:
    """The one line of an error."""
    code, printed = run(argv, params)
    assert code == 2
    assert printed.startswith("main.py: error: ")
    assert printed.count("\n") == 1
    assert printed.endswith("\n")
    return printed.removeprefix("main.py: error: ").rstrip("\n")


def test_settings_are_the_constants_of_params_and_frozen():
    made = from_params()
    assert isinstance(made, Settings)
    assert [name.upper() for name in made.model_dump()] == NAMES
    assert (made.latent_dim, made.loss, made.encoder_layers) == (20, "ce", (512, 512))
    with pytest.raises(ValidationError, match="frozen"):
        made.latent_dim = 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LATENT_DIM", "0", "LATENT_DIM = 0 is not allowed; an integer from 1 to 4,096 is"),
        ("LATENT_DIM", '"20"', "LATENT_DIM = '20' is not allowed; an integer from 1 to 4,096 is"),
        ("LATENT_DIM", "True", "LATENT_DIM = True is not allowed; an integer from 1 to 4,096 is"),
        ("LATENT_DIM", "20.0", "LATENT_DIM = 20.0 is not allowed; an integer from 1 to 4,096 is"),
        ("SEED", "2**31", "SEED = 2147483648 is not allowed; an integer of at least 0 and less than 2,147,483,648 is"),
        ("LEARNING_RATE", "0", "LEARNING_RATE = 0 is not allowed; a finite number from 1e-35 to 1e+38 is"),
        ("LEARNING_RATE", 'float("nan")', "LEARNING_RATE = nan is not allowed; a finite number from 1e-35 to 1e+38 is"),
        ("LEARNING_RATE", "1e999", "LEARNING_RATE = inf is not allowed; a finite number from 1e-35 to 1e+38 is"),
        ("FREE_BITS", "False", f"FREE_BITS = False is not allowed; {UP_TO_A_MILLION} is"),
        ("AUTOENCODER", "1", "AUTOENCODER = 1 is not allowed; True or False is"),
        ("OUTPUT_DIR", "3", "OUTPUT_DIR = 3 is not allowed; the name or path of a folder is"),
        ("RUN_NAME", '"a/b"', f"RUN_NAME = 'a/b' is not allowed; {NAME_RULE} is"),
        ("RUN_NAME", '"..\\\\n"', f"RUN_NAME = '..\\n' is not allowed; {NAME_RULE} is"),
        ("LOSS", '"msw"', f"LOSS = 'msw' is not allowed; {LOSSES} is (did you mean 'mse'?)"),
        (
            "ENCODER_LAYERS",
            "(512, 0)",
            f"ENCODER_LAYERS = (512, 0) is not allowed; a tuple of {WIDTHS} as in (512, 512) or () is",
        ),
        (
            "ENCODER_LAYERS",
            "(256)",
            f"ENCODER_LAYERS = 256 is not allowed; a tuple of {WIDTHS} as in (512, 512) or () is "
            "(did you mean (256,)?)",
        ),
        ("CHANNELS", "0", f"CHANNELS = 0 is not allowed; a tuple of {WIDTHS} as in (32, 64, 128) or () is"),
        (
            "LABELS",
            "(1)",
            "LABELS = 1 is not allowed; a tuple of integers from 0 to 1,000,000, or names as in (1, 7) or () is "
            "(did you mean (1,)?)",
        ),
        ("OUTPUT_DIR", r'"a\\0b"', r"OUTPUT_DIR = 'a\x00b' is not allowed; the name or path of a folder is"),
        ("LATENT_DIM", "10**5000", f"LATENT_DIM = an integer of thousands of digits is not allowed; {LATENTS} is"),
        ("LOSS", "mse", "NameError: name 'mse' is not defined"),
        ("LATENT_DIM", "[][0]", "IndexError: list index out of range"),
    ],
)
def test_a_wrong_value_in_the_file_is_told_with_its_line(tmp_path, name, value, message):
    assert told([], with_value(tmp_path, name, value)) == f"params.py, line {line_of(name)}: {message}"


@pytest.mark.parametrize(
    ("pattern", "new", "message"),
    [
        (
            r"^LATENT_DIM:",
            "DEPTH = 3; LATENT_DIM:",
            "DEPTH has no annotation, which says what is allowed, as in DEPTH: int = 3",
        ),
        (
            r"^LATENT_DIM:",
            "WIDTHS, _ = (3, 4), 5; LATENT_DIM:",
            "WIDTHS has no annotation, which says what is allowed, as in WIDTHS: tuple[int, ...] = (3, 4)",
        ),
        (r"^LATENT_DIM:", "DEPTH: int; LATENT_DIM:", "DEPTH has no value"),
        (r"^LATENT_DIM:", "LAMBDA: float = 1.0; LATENT_DIM:", "LAMBDA is a name that is taken; choose another"),
        (r"^LATENT_DIM:", "COPY: int = 1; LATENT_DIM:", "COPY is a name that is taken; choose another"),
        (r"^LATENT_DIM:", "RESUME: bool = True; LATENT_DIM:", "RESUME is a name that is taken; choose another"),
        (
            r"^LATENT_DIM:",
            "NO_AUTOENCODER: bool = False; LATENT_DIM:",
            "NO_AUTOENCODER is a name that is taken; choose another",
        ),
        (
            r"^LATENT_DIM: .+? =",
            "LATENT_DIM =",
            "LATENT_DIM has no annotation, which says what is allowed, as in LATENT_DIM: int = 20",
        ),
        (r"^LATENT_DIM: .+? =.*", "LATENT_DIM = d", "NameError: name 'd' is not defined"),
        (
            r"^LATENT_DIM: .+? =",
            "LATENT_DIM: Annotated[int, Ge] =",  # pydantic itself ignores this rule
            "LATENT_DIM has an annotation that says nothing: ",
        ),
        (r"^LATENT_DIM: .+? =", "LATENT_DIM: 5 =", "LATENT_DIM has an annotation that says nothing: "),
        (
            r"^LATENT_DIM: .+? =",
            "LATENT_DIM: list[int] =",
            "LATENT_DIM has an annotation that says nothing: list[int] is none of bool, int, ",
        ),
        (r"^LATENT_DIM:.*", 'DATA_DIR: str = "', "unterminated string literal (detected at line {}): DATA_DIR: str ="),
        (r"^LATENT_DIM:.*", 'raise ValueError("two\\\\n lines")', "ValueError: two lines"),
        (r"^LATENT_DIM:.*", "import no_such", "ModuleNotFoundError: No module named 'no_such'"),
    ],
)
def test_a_wrong_name_annotation_or_syntax_in_the_file_is_told_with_its_line(tmp_path, pattern, new, message):
    line = line_of("LATENT_DIM")
    assert told([], edited(tmp_path, pattern, new)).startswith(f"params.py, line {line}: {message.format(line)}")


@pytest.mark.parametrize(
    ("new", "hint"),
    [
        ("", ""),
        ("LATENT_DIM: int", ""),
        ("latent_dim = 20", ""),
        ("Z_SIZE: int = 20", ""),
        ("LATENT_DIMS: int = 20", " (did you mean LATENT_DIMS?)"),
        ("LATENT: int = 20\nZ_SIZE: int = 2", " (did you mean LATENT?)"),
    ],
)
def test_a_missing_constant_is_told(tmp_path, new, hint):
    line = told([], edited(tmp_path, "^LATENT_DIM:.*", new))
    source = (PARAMS.parent / "main.py").read_text().split("\n")
    first = next(number for number, text in enumerate(source, 1) if "s.latent_dim" in text)
    assert line == f"params.py: LATENT_DIM is missing; the code reads it in main.py, line {first}{hint}"


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Write a main.py that is the only code; return the folder for its params.py."""

    def write(source: str) -> Path:
        (tmp_path / "main.py").write_text(source)
        return tmp_path

    def forget():
        for found in (settings_module._needed, settings_module._read):
            found.cache_clear()

    monkeypatch.setattr(settings_module, "ROOT", tmp_path)
    forget()
    yield write
    forget()


@pytest.mark.parametrize(
    "source",
    [
        "def f(settings):\n    return settings.zebra",
        "def f(settings):\n    s = settings\n    return g(2 * s.zebra, s)",
        "def f(vae):\n    return vae.settings.zebra == 3",
        "def f(s: Settings):\n    return f'{s.zebra}'",
    ],
)
def test_what_the_code_reads_of_settings_has_to_be_there(source, tmp_path, code):
    code(source)
    assert told([], edited(tmp_path, "^LATENT_DIM:", "LATENT_DIM:")).startswith("params.py: ZEBRA is missing")
    own = edited(tmp_path, "^LATENT_DIM:", "ZEBRA: float = 0.5\nLATENT_DIM:")
    assert run(["--zebra", "2"], own)[0].settings.zebra == 2.0


@pytest.mark.parametrize(
    "source",
    [
        "def f(settings):\n    return settings.model_copy(), settings.model_fields, settings.items()",
        "def loss(x, logits):\n    s = exp(x)\n    return s.shape",
        "def f(settings):\n    return settings.loss  # and not s.zebra",
        'def f(settings):\n    """Nor s.zebra."""\n    return settings.loss',
        "def f(settings):\n    return losses.zebra, 'utils/settings.py', gpus.count",
        "def f(vae, x, settings: Settings):\n    s = tf.exp(vae.encoder(x)[1])\n    return tf.reduce_sum(s) / s.zebra",
    ],
)
def test_what_looks_like_reading_settings_is_not_missed(source, tmp_path, code):
    code(source)
    run([], edited(tmp_path, "^LATENT_DIM:", "LATENT_DIM:"))[0].settings  # noqa: B018


def test_all_that_params_has_is_found_in_the_code():
    """So that a missing constant is always reported."""
    assert settings_module._needed() >= OURS


def test_a_constant_of_ours_that_nothing_reads_is_found():
    folders = ("main.py", "utils/*.py", "experiments/*.py")
    source = "\n".join(path.read_text() for folder in folders for path in PARAMS.parent.glob(folder))
    assert not [name for name in sorted(OURS) if not re.search(rf"\.{name}\b", source)]
    assert not OURS & {*unread()}


def test_a_constant_that_nothing_reads_gets_a_note(tmp_path, code):
    code(
        "def f(settings):\n    return settings.latent_dim, getattr(settings, 'by_name'), 'as_word', x.as_part"
        "\ndef g(chosen: Settings):\n    return chosen.by_holder"
    )
    own = "LATENT_DIMS: int = 20\nBY_NAME: int = 1\nBY_HOLDER: int = 1\nAS_WORD: int = 1\nAS_PART: int = 1\n"
    own += "ZZZ: bool = True\nLATENT_DIM:"
    params = edited(tmp_path, "^LATENT_DIM:", own)
    names = ("latent_dims", "by_name", "by_holder", "as_word", "as_part", "zzz")
    assert [name for name in unread(params) if name in names] == ["latent_dims", "as_word", "as_part", "zzz"]
    line, found = line_of("LATENT_DIM"), unread_notes(params)
    assert f"note       params.py, line {line}: nothing reads LATENT_DIMS (did you mean LATENT_DIM?)" in found
    assert f"note       params.py, line {line + 3}: nothing reads AS_WORD" in found
    assert f"note       params.py, line {line + 5}: nothing reads ZZZ" in found


def test_a_name_that_main_mistypes_is_found_with_its_place(code, tmp_path):
    code("def f(s: Settings):\n    return s.free_bit")
    line = told([], edited(tmp_path, "^LATENT_DIM:", "LATENT_DIM:"))
    assert line == "params.py: FREE_BIT is missing; the code reads it in main.py, line 2 (did you mean FREE_BITS?)"


def test_a_constant_of_ones_own_is_a_setting_an_option_and_in_help(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    own = (
        "ZEBRA: float = 0.5  # of my own\nZEBRA_LIMIT: Annotated[int, Ge(1)] | None = None  # at most\n"
        "ZEBRA_WORDS: tuple[str, ...] = ()\nLATENT_DIM:"
    )
    params = edited(tmp_path, "^LATENT_DIM:", own)
    plain = run([], params)[0].settings
    assert (plain.zebra, plain.zebra_limit, plain.zebra_words) == (0.5, None, ())
    command = run(["--zebra", "2", "--zebra-limit", "3", "--zebra-words", "a", "b"], params)[0]
    assert command.given == {"zebra": 2.0, "zebra_limit": 3, "zebra_words": ("a", "b")}
    assert command.settings == plain.model_copy(update=command.given)
    assert run(["--zebra-limit", "none"], params)[0].settings == plain
    _, printed = run(["--help"], params)
    assert re.search(r"\n  --zebra X +of my own \[a finite number; default 0.5\]\n", printed)
    assert "at most [an integer of at least 1, or None; default None]\n" in printed
    assert told(["--zebra", "x"], params) == "--zebra: 'x' is not allowed; a finite number is"
    assert plain.model_dump(mode="json")["zebra"] == 0.5


def test_a_missing_file_is_told(tmp_path):
    assert told([], tmp_path / "params.py").startswith("params.py: [Errno 2] No such file or directory")


def test_a_file_in_another_encoding_is_told_unless_it_says_so(tmp_path):
    text = edited(tmp_path, r"^LATENT_DIM:", 'ZEBRA: str = "größer"  # ä\nLATENT_DIM:').read_text(encoding="utf-8")

    def saved(name: str, first: str, encoding: str) -> Path:
        (tmp_path / name).write_bytes((first + text).encode(encoding))
        return tmp_path / name

    place = f"latin.py, line {line_of('LATENT_DIM')}"
    assert told([], saved("latin.py", "", "latin-1")) == f"{place}: a character is not in utf-8"
    assert told([], saved("odd.py", "# coding: odd\n", "utf-8")).startswith("odd.py: unknown encoding")
    declared = saved("declared.py", "# coding: latin-1\n", "latin-1")
    assert run([], declared)[0].settings.zebra == "größer"
    assert read_constants(declared)["zebra"].comment == "ä"


@pytest.mark.parametrize("helper", ["from math import pi as PI", "_HALF = 1", "Positive = Annotated[int, Ge(1)]"])
def test_helpers_and_underscored_names_are_no_constants(tmp_path, helper):
    command, _ = run([], edited(tmp_path, r"^LATENT_DIM", f"{helper}\nLATENT_DIM"))
    assert command.settings.model_dump() == from_params().model_dump()


def test_annotations_may_be_left_as_text(tmp_path):
    command, _ = run([], edited(tmp_path, r"^from typing", "from __future__ import annotations\nfrom typing"))
    assert command.settings.model_dump() == from_params().model_dump()


def test_a_list_in_the_file_is_a_tuple_and_an_integer_is_a_number(tmp_path):
    layers, _ = run([], with_value(tmp_path, "ENCODER_LAYERS", "[5, 6]"))
    assert layers.settings.encoder_layers == (5, 6)
    assert isinstance(from_params(learning_rate=1).learning_rate, float)


def test_rules_across_constants(tmp_path):
    because = "which has no width to learn; loss 'mse', 'ad' or 'logistic' is"
    learned = with_value(tmp_path, "DECODER_SCALE", '"learned"')
    place = f"params.py, line {line_of('DECODER_SCALE')}: DECODER_SCALE = 'learned'"
    assert told([], learned) == f"{place} is not allowed with loss 'ce', {because}"
    assert told(["--loss", "ce"], learned) == f"--loss: 'ce' is not allowed with decoder_scale 'learned', {because}"
    assert run(["--loss", "mse"], learned)[0].settings.decoder_scale == "learned"
    with pytest.raises(SettingsError, match=f"^decoder_scale: 'learned' is not allowed with loss 'ce', {because}$"):
        from_params(decoder_scale="learned")
    with pytest.raises(SettingsError, match=r"^kl_cycles: 4 is not allowed with kl_steps 3, .* one cycle a step is$"):
        from_params(kl_schedule="cyclical", kl_cycles=4, kl_steps=3)
    assert from_params(kl_schedule="cyclical", kl_cycles=4, kl_steps=4).kl_cycles == 4
    assert from_params(kl_schedule="linear", kl_cycles=4, kl_steps=3).kl_cycles == 4
    assert from_params(kl_schedule="cyclical", kl_cycles=4, kl_steps=0).kl_steps == 0


@pytest.mark.parametrize(
    ("changes", "planned", "steps"),
    [
        ({}, 7_020, 2_000),  # the default run
        ({}, 468, 156),  # one epoch
        ({}, 2, 1),
        ({"kl_steps": 500}, 468, 500),
        ({"kl_schedule": "cyclical", "kl_cycles": 4}, 12, 4),  # one step per cycle
        ({"kl_schedule": "linear", "kl_cycles": 4}, 9, 3),
    ],
)
def test_kl_steps_0_is_a_third_of_the_planned_steps_but_at_most_2000(changes, planned, steps):
    assert with_kl_steps(from_params(**{"kl_steps": 0} | changes), planned).kl_steps == steps


def test_kl_steps_0_are_as_many_as_kl_cycles_at_least():
    cyclical = from_params(kl_schedule="cyclical", kl_cycles=4, kl_steps=0)
    with pytest.raises(SettingsError, match=r"^kl_cycles: 4 is not allowed with kl_steps 0, which is 3 in a run of 11"):
        with_kl_steps(cyclical, 11)


def test_the_ramp_ends_where_the_kl_has_its_final_weight():
    assert ramp_end(from_params(kl_steps=70, kl_schedule="sigmoid")) == 70
    for changes in ({"kl_schedule": "constant"}, {"autoencoder": True}, {"kl_weight_start": 2.0, "kl_weight_end": 2.0}):
        assert ramp_end(from_params(kl_steps=70, **changes)) == 0


def test_only_losses_with_a_width_have_a_learned_one(tmp_path):
    params = edited(tmp_path, r'^LOSS: Literal\["ce"', 'LOSS: Literal["ce", "focal"')
    for loss in get_args(read_constants(params)["loss"].annotation):
        words = ["--loss", loss, "--decoder-scale", "learned"]
        if loss in LEARNED_WIDTH:
            assert run(words, params)[0].settings.decoder_scale == "learned"
        else:
            because = "which has no width to learn; loss 'mse', 'ad' or 'logistic' is"
            assert told(words, params) == f"--decoder-scale: 'learned' is not allowed with loss '{loss}', {because}"
    assert run(["--loss", "focal"], params)[0].settings.loss == "focal"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"latent_dim": 0}, "latent_dim: 0 is not allowed; an integer from 1 to 4,096 is"),
        ({"loss": None}, f"loss: None is not allowed; {LOSSES} is"),
        (
            {"latent_dims": 2},
            "latent_dims: 2 is not allowed; params.py has no such constant (did you mean 'latent_dim'?)",
        ),
    ],
)
def test_wrong_overrides_are_told(overrides, message):
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}$"):
        from_params(**overrides)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", {}),
        ("--loss mse --latent-dim 2 --epochs 5", {"loss": "mse", "latent_dim": 2, "epochs": 5}),
        ("--latent-dim=2", {"latent_dim": 2}),
        ("--kl-steps 2_000", {"kl_steps": 2000}),
        ("--learning-rate 1e-4 --free-bits 1", {"learning_rate": 1e-4, "free_bits": 1.0}),
        ("--encoder-layers 500 300 --epochs 1", {"encoder_layers": (500, 300), "epochs": 1}),
        ("--encoder-layers 500,300", {"encoder_layers": (500, 300)}),
        ("--encoder-layers=(500,)", {"encoder_layers": (500,)}),
        ("--encoder-layers", {"encoder_layers": ()}),
        ("--encoder-layers none", {"encoder_layers": ()}),
        ("--kl-steps 2147483647 --kl-cycles 2147483647", {"kl_steps": 2**31 - 1, "kl_cycles": 2**31 - 1}),
        ("--kl-weight-end 1e6 --nll-samples 1000000", {"kl_weight_end": 1e6, "nll_samples": 10**6}),
        ("--autoencoder", {"autoencoder": True}),
        ("--no-autoencoder", {"autoencoder": False}),
        ("--output-dir -here --run-name=", {"output_dir": "-here", "run_name": ""}),
    ],
)
def test_options_are_parsed_by_their_annotation(argv, expected):
    command, _ = run(argv.split())
    assert command.given == expected
    assert [type(value) for value in command.given.values()] == [type(value) for value in expected.values()]
    assert command.settings == from_params(**expected)
    assert command.resume is None


def test_resume_is_an_option_of_its_own():
    command, _ = run(["--resume", "mnist-ce-z20", "--epochs", "30"])
    assert (command.resume, command.given) == ("mnist-ce-z20", {"epochs": 30})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--latent-dim 0", "--latent-dim: 0 is not allowed; an integer from 1 to 4,096 is"),
        ("--latent-dim -3", "--latent-dim: -3 is not allowed; an integer from 1 to 4,096 is"),
        ("--latent-dim two", "--latent-dim: 'two' is not allowed; an integer from 1 to 4,096 is"),
        ("--latent-dim 2.5", "--latent-dim: '2.5' is not allowed; an integer from 1 to 4,096 is"),
        ("--latent-dim", f"--latent-dim lacks its value: {LATENTS}"),
        ("--data-dir", "--data-dir lacks its value: the name or path of a folder or file"),
        ("--learning-rate -1e-3", "--learning-rate: -0.001 is not allowed; a finite number from 1e-35 to 1e+38 is"),
        ("--learning-rate nan", "--learning-rate: nan is not allowed; a finite number from 1e-35 to 1e+38 is"),
        ("--learning-rate -inf", "--learning-rate: -inf is not allowed; a finite number from 1e-35 to 1e+38 is"),
        ("--loss msw", f"--loss: 'msw' is not allowed; {LOSSES} is (did you mean 'mse'?)"),
        ("--dataset celebra", f"--dataset: 'celebra' is not allowed; {DATASETS} is (did you mean 'celeba'?)"),
        ("--dataset tfds:", f"--dataset: 'tfds:' is not allowed; {DATASETS} is"),
        (
            "--image-size 30 --architecture conv --dataset celeba",
            "--image-size: 30 is not allowed with architecture 'conv', which halves images; multiples of 4 are",
        ),
        (
            "--channels none --architecture resnet",
            "--channels: none is not allowed with architecture 'resnet', which has at least one stage",
        ),
        (
            "--loss logistic",
            "--loss: 'logistic' is not allowed with decoder_scale 'fixed', whose width is learned; "
            "decoder_scale 'learned' is",
        ),
        ("--run-name .x", f"--run-name: '.x' is not allowed; {NAME_RULE} is"),
        (
            "--encoder-layers 500 x",
            f"--encoder-layers: 500 'x' is not allowed; none or a list of {WIDTHS} as in 512 512 is",
        ),
        ("--kl-steps 2147483648", f"--kl-steps: 2147483648 is not allowed; {POSITIVE.replace('1', '0', 1)} is"),
        ("--kl-cycles 2147483648", f"--kl-cycles: 2147483648 is not allowed; {POSITIVE} is"),
        ("--nll-samples 1000001", "--nll-samples: 1000001 is not allowed; an integer from 0 to 1,000,000 is"),
        ("--kl-weight-start 1000000.5", f"--kl-weight-start: 1000000.5 is not allowed; {UP_TO_A_MILLION} is"),
        ("--kl-weight-end 1e39", f"--kl-weight-end: 1e+39 is not allowed; {UP_TO_A_MILLION} is"),
        ("--free-bits 1e300", f"--free-bits: 1e+300 is not allowed; {UP_TO_A_MILLION} is"),
        ("--autoencoder=yes", FLAG),
        ("--no-autoencoder=yes", FLAG),
        ("--no-autoencoder --autoencoder False --epochs 3", FLAG),
        ("--autoencoder --xyzzy", "main.py takes no option '--xyzzy'; --help lists the options"),
        ("--latent-dims 2", "main.py takes no option '--latent-dims' (did you mean --latent-dim?)"),
        ("--los=fashion_mnist", "main.py takes no option '--los=fashion_mnist' (did you mean --loss?)"),
        ("--LATENT-DIM 2", "main.py takes no option '--LATENT-DIM' (did you mean --latent-dim?)"),
        ("--resumed x", "main.py takes no option '--resumed' (did you mean --resume?)"),
        ("--latent 2", "main.py takes no option '--latent' (did you mean --latent-dim?)"),
        ("-latent-dim 2", "main.py takes no option '-latent-dim' (did you mean --latent-dim?)"),
        ("--xyzzy", "main.py takes no option '--xyzzy'; --help lists the options"),
        ("foo --epochs 3", "main.py takes no argument 'foo'; --help lists the options"),
        ("True --autoencoder no", "main.py takes no argument 'True'; --help lists the options"),
        ("foo --autoencoder", "main.py takes no argument 'foo'; --help lists the options"),
        ("--epochs 3 --autoencoder 3", FLAG),
        ("--resume", "--resume: expected one argument"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(argv, message):
    assert told(argv.split()) == message


def test_the_file_is_blamed_for_its_own_values(tmp_path):
    line = told(["--epochs", "5"], with_value(tmp_path, "LATENT_DIM", "0"))
    assert line.startswith(f"params.py, line {line_of('LATENT_DIM')}: LATENT_DIM = 0 is not allowed; ")


WORDS = [f"--{name.lower().replace('_', '-')}" for name in NAMES] + ["--no-autoencoder", "--resume", "--", "-", "none"]
ANY_WORD = st.sampled_from(WORDS) | st.text(max_size=6) | st.floats().map(str) | st.integers().map(str)


@settings(deadline=None)
@given(st.lists(ANY_WORD, max_size=6))
def test_any_command_line_gives_settings_or_one_line(argv):
    argv = [word for word in argv if word not in ("-h", "--help")]
    outcome, printed = run(argv)
    assert isinstance(outcome, Command) or (outcome == 2 and printed.count("\n") == 1)


@settings(deadline=None)
@given(st.integers(-(2**40), 2**40))
def test_a_seed_is_taken_exactly_within_its_range(seed):
    command, _ = run([f"--seed={seed}"])
    assert isinstance(command, Command) == (0 <= seed < 2**31)
    assert command == 2 or command.settings.seed == seed


def test_help_lists_every_constant_with_comment_choice_and_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # one line per option
    code, printed = run(["--help"])
    assert code == 0
    for title in re.findall(r"^# --- (\w+) -+$", SOURCE, re.MULTILINE):
        assert f"\n{title}:\n" in printed
    for name in NAMES:
        option = f"--{name.lower().replace('_', '-')}"
        entry = re.search(rf"^  {option}\b.*?(?=^  -|^\S|\Z)", printed, re.MULTILINE | re.DOTALL)[0]
        comment = re.search(rf"^{name}: .+?  # (.*)", SOURCE, re.MULTILINE)[1]
        assert comment.strip() in entry
        assert re.search(r"[\[ ]default \S.*\]\n", entry)
    assert f"as a map [{LATENTS}; default 20]\n" in printed
    assert f"[none or a list of {WIDTHS} as in 512 512; default 512 512]\n" in printed
    assert "()" not in printed  # the notation of the file; typed, it is none
    assert f"[{LOSSES}; default {from_params().loss!r}]\n" in printed
    second_line = """brightness as the probability of white; with "ce", a likelihood needs this ['dynamic'"""
    assert second_line in printed
    assert "[default False]\n" in printed
    assert "--resume RUN" in printed


def test_help_joins_a_comment_of_several_lines_and_survives_a_percent_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    line = 'DATA_DIR: str = "ääääää"  # half: 50 %, ä\n          # and (s) half\n# not this\n'
    _, printed = run(["--help"], edited(tmp_path, r"^DATA_DIR.*\n", line))
    assert "  half: 50 %, ä and (s) half [a text; default 'ääääää']\n" in printed


@pytest.mark.parametrize("columns", [80, 120])
def test_help_keeps_to_the_width(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, printed = run(["-h"])
    assert code == 0
    assert max(map(len, printed.split("\n"))) <= columns


def test_a_resumed_run_keeps_its_settings():
    saved = from_params(latent_dim=20, epochs=10, loss="mse")
    assert resumed(saved, {}) == saved
    assert resumed(saved, {"latent_dim": 20, "epochs": 10, "output_dir": "elsewhere"}) == saved
    assert resumed(saved, {"epochs": 12}) == from_params(latent_dim=20, epochs=12, loss="mse")
    going_on = {"data_dir": "moved", "skip_bad_images": True}
    assert resumed(saved, going_on) == from_params(latent_dim=20, epochs=10, loss="mse", **going_on)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latent_dim": 5}, "--latent-dim 5 contradicts the run's 20"),
        ({"epochs": 9}, "--epochs 9 contradicts the run's 10"),
        ({"mixed_precision": True}, "--mixed-precision contradicts the run's False"),
        ({"autoencoder": False}, "--no-autoencoder contradicts the run's True"),
        ({"epochs": 12, "encoder_layers": (5, 6)}, "--encoder-layers 5 6 contradicts the run's 512 512"),
    ],
)
def test_a_contradiction_to_a_resumed_run_is_told(given, message):
    rest = "; a resumed run keeps its settings (only --epochs may grow)"
    with pytest.raises(SettingsError, match=f"^{re.escape(message + rest)}$"):
        resumed(from_params(epochs=10, autoencoder=True), given)


def through_json(made: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(made.model_dump(mode="json")))


def test_settings_survive_json():
    made = from_params(encoder_layers=(7, 8, 9), decoder_layers=(), learning_rate=1 / 3, run_name="x", autoencoder=True)
    assert load_saved(through_json(made), pytest.fail) == made


def test_constants_that_were_added_have_values_from_before_that_are_allowed():
    assert BEFORE.keys() <= OURS
    assert from_params(**BEFORE).model_dump(include=BEFORE.keys()) == BEFORE


def test_saved_settings_that_no_longer_fit_are_told():
    told = r"^saved epochs: 0 is not allowed; an integer from 1 to 1,000,000 is$"
    with pytest.raises(SettingsError, match=told):
        load_saved(through_json(from_params()) | {"epochs": 0}, pytest.fail)


def test_a_run_that_was_saved_without_constants_has_their_values_from_before_or_of_today(tmp_path):
    """As at 803fe99, and before a user added a constant; params.py has other values today."""
    own = "ZEBRA: float = 0.5\nMIXED_PRECISION: bool = True"
    params, notes = edited(tmp_path, "^MIXED_PRECISION: bool = False", own), []
    made = from_params(latent_dim=7)
    old = {name: value for name, value in through_json(made).items() if name not in BEFORE}
    found = load_saved(old, notes.append, params=params)
    assert found.model_dump() == made.model_dump() | BEFORE | {"zebra": 0.5}
    values = (
        "IMAGE_SIZE = 64, IMAGE_CROP = 0, IMAGE_FIT = 'crop', SKIP_BAD_IMAGES = False, ARCHITECTURE = 'mlp', "
        "CHANNELS = (32, 64, 128), "
    )
    values += "RESIDUAL_BLOCKS = 1, ZEBRA = 0.5, MIXED_PRECISION = False"
    assert notes == [f"note       not saved with the run, so set to: {values}"]
    assert resumed(found, {"zebra": 0.5}) == found
    with pytest.raises(SettingsError, match=r"^--zebra 2\.0 contradicts the run's 0\.5; "):
        resumed(found, {"zebra": 2.0})
    asked = {"zebra": 2.0, "mixed_precision": True}  # the command line decides what no run had
    given = load_saved(old, notes.append, run="old", given=asked, params=params)
    assert (given.zebra, given.mixed_precision) == (2.0, False)
    assert notes[1] == f"note       not saved with old, so set to: {values.replace('0.5', '2.0')}"


def test_a_saved_constant_that_is_no_more_is_dropped_if_it_had_no_effect(monkeypatch):
    made, notes = from_params(), []
    saved = through_json(made) | {"zebra": 3, "sizes": [1, 2]}
    assert load_saved(saved, notes.append, ["zebra", "sizes"]) == made
    told = "saved with the run, without effect and not in params.py, so dropped: ZEBRA = 3, SIZES = (1, 2)"
    assert notes == [f"note       {told}"]
    monkeypatch.setitem(BEFORE, "sizes", (1, 2))
    assert load_saved(saved, notes.append, ["zebra"]) == made


def test_a_saved_constant_that_is_no_more_is_refused_if_it_had_an_effect(monkeypatch):
    saved = through_json(from_params()) | {"zebra": 3, "sizes": [1, 2]}
    way_on = "had an effect, but params.py lacks it; put it back to use the run: "
    with pytest.raises(SettingsError, match=f"^saved zebra: 3 {way_on}ZEBRA: int = 3$"):
        load_saved(saved, pytest.fail, ["sizes"])
    monkeypatch.setitem(BEFORE, "sizes", (1, 3))
    with pytest.raises(SettingsError, match=re.escape(f"saved sizes: (1, 2) {way_on}SIZES: tuple[int, ...] = (1, 2)")):
        load_saved(saved, pytest.fail, ["zebra"])


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Literal["ce", "mse", "ad"], "'ce', 'mse' or 'ad'"),
        (Literal["ce"], "'ce'"),
        (
            Literal["a", "b"] | Annotated[str, StringConstraints(pattern="^x:"), "a name as in 'x:y'"],
            "'a' or 'b', or a name as in 'x:y'",
        ),
        (Annotated[int, Ge(1)], "an integer of at least 1"),
        (Annotated[int, Ge(0), Lt(2**31)], "an integer of at least 0 and less than 2,147,483,648"),
        (Annotated[float, Gt(0), Le(0.5)], "a finite number greater than 0 and at most 0.5"),
        (Annotated[float, Ge(0), Le(10**6)], "a finite number from 0 to 1,000,000"),
        (bool, "True or False"),
        (int | None, "an integer, or None"),
        (str, "a text in quotes"),
        (Annotated[str, StringConstraints(pattern="^a+$")], "a text in quotes that matches ^a+$"),
        (tuple[Annotated[int, Ge(1)], ...], "a tuple of integers of at least 1 as in (512, 512) or ()"),
        (
            Annotated[tuple[Annotated[int, Le(9)], ...], "as in (3,)"],
            "a tuple of integers of at most 9 as in (3,) or ()",
        ),
        (Annotated[tuple[int, ...], "two or more"], "two or more"),
        (tuple[float, ...], "a tuple of finite numbers as in (0.1, 0.5) or ()"),
        (tuple[str, ...], "a tuple of texts in quotes or ()"),
    ],
)
def test_an_annotation_in_words(annotation, words):
    assert allowed(annotation) == words


def bounds_of(annotation: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """The type of a constant, or of its tuple's items, and for each bound the last value within it and one beyond."""
    kind, *rules = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if get_origin(kind) is tuple:
        return bounds_of(get_args(kind)[0])
    found = []
    for rule in rules:
        for name, inside, beyond in (("ge", 0, -1), ("gt", 1, 0), ("le", 0, 1), ("lt", -1, 0)):
            if (bound := getattr(rule, name, None)) is not None and kind is int:
                found.append((bound + inside, bound + beyond))
            elif bound is not None:
                found.append((float(bound), math.nextafter(bound, beyond * math.inf)))
    return kind, found


def bounded() -> list[tuple[str, Any, Any]]:
    """Each number that has bounds in params.py: its option, and at each end the allowed value and one beyond it."""
    return [
        (f"--{name.replace('_', '-')}", at, beyond)
        for name in sorted(OURS)
        for at, beyond in bounds_of(read_constants()[name].annotation)[1]
    ]


def test_every_number_of_ours_has_a_bound_at_either_end():
    for name in OURS:
        kind, bounds = bounds_of(read_constants()[name].annotation)
        assert len(bounds) == (2 if kind in (int, float) else 0), name


@pytest.mark.parametrize(("option", "at", "beyond"), bounded())
def test_a_number_is_taken_at_its_bound_and_refused_beyond(option, at, beyond):
    outcome, printed = run([option, str(at)])
    assert isinstance(outcome, Command) or "is not allowed with" in printed  # because of another constant
    assert re.fullmatch(rf"{option}: {re.escape(str(beyond))} is not allowed; .* is", told([option, str(beyond)]))


def test_a_learning_rate_is_a_normal_number_in_float32():
    for bound, _ in bounds_of(read_constants()["learning_rate"].annotation)[1]:
        assert np.finfo(np.float32).tiny <= np.float32(bound) < np.inf


def test_every_annotation_of_params_has_words():
    words = [allowed(constant.annotation) for constant in read_constants().values()]
    assert not [text for text in words if re.search("class|typing|matches", text)]


def test_a_typo_is_told_without_tensorflow():
    code = """if True:
        import atexit, sys
        from utils.settings import read_command_line
        atexit.register(lambda: print(*sys.modules))
        read_command_line()"""
    command = [sys.executable, "-c", code, "--latent-dim", "0"]
    done = subprocess.run(command, cwd=PARAMS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "main.py: error: --latent-dim: 0 is not allowed; an integer from 1 to 4,096 is\n"
    assert "pydantic" in done.stdout.split()
    assert not {"tensorflow", "keras", "numpy"} & set(done.stdout.split())
