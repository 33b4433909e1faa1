"""params.py and the command line -> one checked, frozen Settings; any mistake is reported in one line.

The annotation of a constant in params.py is the only place that says what is allowed. It serves to check the file, to
parse the command line, and to word error messages and --help. TensorFlow is not imported here, so that a typo is
reported before it loads.
"""

import argparse
import ast
import importlib.util
import inspect
import keyword
import re
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model, field_validator, model_validator
from pydantic_core import PydanticCustomError

from utils.console import Problem, Say, refuse

PARAMS = Path(__file__).resolve().parent.parent / "params.py"
ROOT = PARAMS.parent  # the folder of the code that reads the constants

# The constants added since commit 803fe99, each with the value that keeps the old behaviour. A run that was saved
# without one counts as a run with this value. A new constant has to be added here too.
BEFORE: dict[str, Any] = {
    "image_size": 64, "image_crop": 0, "image_fit": "crop", "skip_bad_images": False,
    "architecture": "mlp", "channels": (32, 64, 128), "residual_blocks": 1, "mixed_precision": False,
}  # fmt: skip
MOST_KL_STEPS = 2_000  # most that KL_STEPS = 0 can mean
LEARNED_WIDTH = ("mse", "ad", "logistic")  # losses for which DECODER_SCALE may be "learned": densities of grey pixels


class SettingsError(Problem, ValueError):
    """What is wrong with a constant, in one line: its name, its value and what is allowed."""

    exit_code = 2

    def __init__(self, message: str):
        """Join the lines of a message, because Python's own messages may have several."""
        super().__init__(" ".join(message.split()))


# --- the model --------------------------------------------------------------------------------------------------------
class Settings(BaseModel):
    """Every constant of params.py, in lower case, checked and frozen. `settings_model` adds the fields."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _list_as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # JSON has no tuples

    @model_validator(mode="after")
    def _rules_across_constants(self) -> "Settings":
        s, fits = self, "whose width is learned; decoder_scale 'learned' is"
        widths = f"which has no width to learn; loss {_either(LEARNED_WIDTH)} is"
        learned, plain, convolves = s.decoder_scale == "learned", s.autoencoder, s.architecture in ("conv", "resnet")
        other_prior, other_bound = s.prior != "standard", s.bound != "elbo"
        odd = s.dataset not in ("mnist", "fashion_mnist", "arrays") and s.image_size % 4
        means, cyclical = s.reconstruction_reduction == "mean", s.kl_schedule == "cyclical"
        rules = (  # the condition to refuse, the constant to change, the one it clashes with, and why
            (learned and s.loss not in LEARNED_WIDTH, "decoder_scale", "loss", widths),
            (not learned and s.loss == "logistic", "decoder_scale", "loss", fits),
            (convolves and not s.channels, "channels", "architecture", "which has at least one stage"),
            (convolves and odd, "image_size", "architecture", "which halves images; multiples of 4 are"),
            (s.image_fit == "keep" and s.dataset != "folder", "image_fit", "dataset", "whose images are made square"),
            (plain and s.noise_dim, "noise_dim", "autoencoder", "which is trained without any noise"),
            (plain and other_prior, "prior", "autoencoder", "which has no prior"),
            (plain and other_bound, "bound", "autoencoder", "which has none"),
            (plain and s.bound_samples > 1, "bound_samples", "autoencoder", "which draws no samples"),
            (s.prior == "realnvp" and s.latent_dim == 1, "latent_dim", "prior", "which couples halves of the latents"),
            (s.free_bits and other_prior, "free_bits", "prior", "whose KL is not a sum over latents"),
            (s.free_bits and other_bound, "free_bits", "bound", "whose weights are of all latents together"),
            (s.free_bits and s.bound_samples > 1, "free_bits", "bound_samples", "which may split a batch"),
            (means and other_bound, "reconstruction_reduction", "bound", "whose weights need whole images"),
            (s.bound_samples > s.bound_chunk, "bound_samples", "bound_chunk", "which has to hold those of an image"),
            (cyclical and 0 < s.kl_steps < s.kl_cycles, "kl_cycles", "kl_steps", "at most one cycle a step is"),
        )
        for broken, name, other, reason in rules:
            if broken:
                raise PydanticCustomError("clash", reason, {"names": (name, other)})
        return self


@cache
def settings_model(params: Path = PARAMS) -> type[Settings]:
    """The Settings whose fields, annotations and defaults are the constants of params.py.

    It is made on demand, not at import, so that a mistake in params.py is reported like others. Raises SettingsError.
    """
    fields = {name: (constant.annotation, constant.value) for name, constant in read_constants(params).items()}
    return create_model("Settings", __base__=Settings, **fields)


def from_params(**overrides: Any) -> Settings:
    """The settings of params.py with some of them replaced: `from_params(latent_dim=2)`. Raises SettingsError."""
    return _build(overrides)


def load_saved(
    saved: dict[str, Any], say: Say, unread: Iterable[str] = (), run: str = "the run",
    given: dict[str, Any] | None = None, params: Path = PARAMS,
) -> Settings:  # fmt: skip
    """Load settings that `model_dump(mode="json")` wrote, though params.py may have changed since; `say` gets notes.

    A constant that was added since gets its value in BEFORE. If it is the user's own, it gets the value in `given` (the
    command line) or else in params.py. A constant that was removed since is dropped if it had no effect: nothing read
    it (`unread`), or it had its value in BEFORE. Raises SettingsError if it had an effect, and for a value that
    params.py does not allow.
    """
    constants = read_constants(params)
    today = {name: constant.value for name, constant in constants.items()} | (given or {}) | BEFORE
    new = {name: value for name, value in today.items() if name in constants and name not in saved}
    old = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items() if name not in constants}
    for name, value in old.items():
        if name not in unread and (name not in BEFORE or value != BEFORE[name]):
            way_on = f"put it back to use the run: {_example(name.upper(), value)}"
            raise SettingsError(f"saved {name}: {value!r} had an effect, but {params.name} lacks it; {way_on}")
    dropped = f"saved with {run}, without effect and not in {params.name}, so dropped"
    for what, values in ((f"not saved with {run}, so set to", new), (dropped, old)):
        if values:
            say(f"note       {what}: {', '.join(f'{name.upper()} = {value!r}' for name, value in values.items())}")
    return _build({name: value for name, value in (new | saved).items() if name in constants}, "saved ", params)


def with_kl_steps(s: Settings, planned: int) -> Settings:
    """The settings with KL_STEPS as a number: 0 means a third of the steps that were `planned`, but at most 2,000.

    Raises SettingsError if the result is below KL_CYCLES with a cyclical schedule.
    """
    if s.kl_steps:
        return s
    steps = max(1, min(planned // 3, MOST_KL_STEPS))
    if s.kl_schedule == "cyclical" and s.kl_cycles > steps:
        here = f"kl_steps 0, which is {steps:,} in a run of {planned:,} steps"
        raise SettingsError(f"kl_cycles: {s.kl_cycles:,} is not allowed with {here}; at most one cycle a step is")
    return s.model_copy(update={"kl_steps": steps})


def ramp_end(s: Settings) -> int:
    """The first step in which the KL has its final weight; 0 if there is no ramp."""
    is_constant = s.autoencoder or s.kl_schedule == "constant" or s.kl_weight_start == s.kl_weight_end
    return 0 if is_constant else s.kl_steps


def resumed(saved: Settings, given: dict[str, Any]) -> Settings:
    """The saved settings of a run to resume, updated with `given` from the command line.

    Only a few may differ: epochs may grow, skip_bad_images may be turned on, and data_dir may be the new place of the
    same data. output_dir is ignored, because it says where the run was found. Raises SettingsError for any other
    difference.
    """
    changed = {name: value for name, value in given.items() if name != "output_dir" and value != getattr(saved, name)}
    for name, value in changed.items():
        before = getattr(saved, name)
        if name != "data_dir" and not (name in ("epochs", "skip_bad_images") and value > before):
            typed = _option(name, value) if isinstance(value, bool) else f"{_option(name)} {_shown(value)}"
            rule = "a resumed run keeps its settings (only --epochs may grow)"
            raise SettingsError(f"{typed} contradicts the run's {_shown(before)}; {rule}")
    return saved.model_copy(update=changed)


def _build(values: dict[str, Any], prefix: str = "", params: Path = PARAMS) -> Settings:
    """The settings of params.py, overridden by `values`. The prefix says where these come from ("--": command line)."""
    try:
        return settings_model(params).model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error.errors()[0], values, prefix, params)) from None


def _explain(error: Any, values: dict[str, Any], prefix: str, params: Path) -> str:
    """An error of pydantic in our own words."""
    constants = read_constants(params)
    everything = {name: constant.value for name, constant in constants.items()} | values

    def place(name: str) -> str:
        written = _written(everything[name])
        if name not in values:
            return f"{params.name}, line {constants[name].line}: {name.upper()} = {written}"
        return f"{_option(name)}: {_shown(values[name])}" if prefix == "--" else f"{prefix}{name}: {written}"

    if error["type"] == "clash":  # blame what was just typed rather than the file
        name, other = sorted(error["ctx"]["names"], key=lambda name: name not in values)
        return f"{place(name)} is not allowed with {other} {everything[other]!r}, {error['msg']}"
    name = error["loc"][0]
    if error["type"] == "extra_forbidden":
        return f"{place(name)} is not allowed; {params.name} has no such constant{_did_you_mean(name, constants)}"
    words = allowed(constants[name].annotation, typed=prefix == "--" and name in values)
    if _is_lone(everything[name], constants[name].annotation):
        hint = f" (did you mean ({_written(everything[name])},)?)"
    else:
        hint = _did_you_mean(everything[name], re.findall(r"'(\w{2,})'", words))
    return f"{place(name)} is not allowed; {words} is{hint}"


def _is_lone(value: Any, annotation: Any) -> bool:
    """Whether a value would be allowed as a tuple of one, so that only the comma of (256,) is missing."""
    if get_origin(_bare(annotation)) is not tuple:
        return False
    try:
        TypeAdapter(annotation).validate_python((value,), strict=True)
    except ValidationError:
        return False
    return True


def _written(value: Any) -> str:
    """A value as it is written in params.py."""
    try:
        return repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "an integer of thousands of digits"


def _did_you_mean(word: Any, known: Iterable[str], show: Callable[[str], str] = repr) -> str:
    close = get_close_matches(word if isinstance(word, str) else _written(word), list(known), n=1)
    return f" (did you mean {show(close[0])}?)" if close else ""


# --- annotations in words ---------------------------------------------------------------------------------------------
UNIONS = (Union, UnionType)  # A | B is one or the other, depending on A and B
NOUNS = {bool: "True or False", int: "an integer", float: "a finite number", type(None): "None"}
EXAMPLES = {int: "as in (512, 512)", float: "as in (0.1, 0.5)"}  # of tuples, by the type of their items
BOUNDS = {"ge": "of at least", "gt": "greater than", "le": "of at most", "lt": "less than"}


def allowed(annotation: Any, typed: bool = False) -> str:
    """What an annotation allows, in words; `typed`: on the command line, where texts and lists need no punctuation."""
    kind, rules = _bare(annotation), getattr(annotation, "__metadata__", ())
    own = next((rule for rule in rules if isinstance(rule, str)), "")  # a text in the annotation
    if own and not own.startswith("as in "):  # a tuple's text may start so: it is its example
        return own
    if get_origin(kind) in UNIONS:
        return ", or ".join(allowed(choice, typed) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return _either(get_args(kind))
    if get_origin(kind) is tuple:
        items = re.sub(r"^an? ((?:finite )?\w+)", r"\1s", allowed(get_args(kind)[0], typed))
        example = own or EXAMPLES.get(_bare(get_args(kind)[0]), "")
        if typed:
            return f"none or a list of {items} {re.sub('[(),]', '', example)}".rstrip()
        return f"a tuple of {items} {f'{example} or' if example else 'or'} ()"
    if kind is str:
        pattern = next((rule.pattern for rule in rules if hasattr(rule, "pattern")), None)
        return ("a text" if typed else "a text in quotes") + (f" that matches {pattern}" if pattern else "")
    if kind not in NOUNS:
        raise TypeError(f"{kind} is none of bool, int, float, str, Literal[...], tuple[...] and unions of these")
    bounds = [(words, getattr(rule, key, None)) for rule in rules for key, words in BOUNDS.items()]
    limits = " and ".join(f"{words} {bound:,}" for words, bound in bounds if bound is not None)
    limits = re.sub("^of at least (.+) and of at most (.+)$", r"from \1 to \2", limits)
    return f"{NOUNS[kind]} {limits.replace('and of', 'and')}".strip()


def _either(choices: Sequence[Any]) -> str:
    return " or ".join(", ".join(map(repr, choices)).rsplit(", ", 1))


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


# --- params.py --------------------------------------------------------------------------------------------------------
class Constant(NamedTuple):
    """A constant of params.py and its context there."""

    value: Any
    annotation: Any
    line: int
    group: str  # the title of its ruled block
    comment: str


@cache
def read_constants(params: Path = PARAMS) -> dict[str, Constant]:
    """The constants of params.py by their lower-case names, in the file's order. Raises SettingsError."""
    text = _source(params)
    values, annotations = _import(params)
    assignments, lines = _assignments(text), text.split("\n")
    there = {name.lower() for name in assignments if name in values}
    if missing := sorted(_needed() - there):
        hint = _did_you_mean(missing[0], sorted(there), str.upper)
        raise SettingsError(
            f"{params.name}: {missing[0].upper()} is missing; the code reads it{_place(missing[0])}{hint}"
        )
    constants = {}
    for name, node in assignments.items():
        _check(f"{params.name}, line {node.lineno}: {name}", name, values, annotations)
        constants[name.lower()] = Constant(values[name], annotations[name], node.lineno, *_around(lines, node))
    return constants


def _source(params: Path) -> str:
    """The text of params.py, in UTF-8 or the encoding that its first lines declare. Raises SettingsError."""
    try:
        with tokenize.open(params) as file:
            return file.read()
    except OSError as error:
        raise SettingsError(f"{params.name}: {error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{params.name}, line {line}: a character is not in {error.encoding}") from None
    except SyntaxError as error:  # the declared encoding is unknown
        raise SettingsError(f"{params.name}: {error.msg}") from None


def _import(params: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What params.py defines, and its annotations. Any exception becomes a SettingsError with the line number."""
    spec = importlib.util.spec_from_file_location("params", params)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return vars(module), inspect.get_annotations(module, eval_str=True)
    except SyntaxError as error:
        raise SettingsError(f"{params.name}, line {error.lineno or 1}: {error.msg}: {error.text or ''}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(params)]
        what = f", line {lines[-1]}: {type(error).__name__}: {error}" if lines else f": {error}"
        raise SettingsError(f"{params.name}{what}") from None


def _check(place: str, name: str, values: dict[str, Any], annotations: dict[str, Any]) -> None:
    """Refuse a constant without value, without a usable annotation, or with a name that can't be used."""
    no_flag = name.startswith("NO_") and annotations.get(name[3:]) is bool  # --no-x turns the flag --x off
    if keyword.iskeyword(name.lower()) or hasattr(BaseModel, name.lower()) or name in ("HELP", "RESUME") or no_flag:
        raise SettingsError(f"{place} is a name that is taken; choose another")
    if name not in values:
        raise SettingsError(f"{place} has no value")
    if name not in annotations:
        example = _example(name, values[name])
        raise SettingsError(f"{place} has no annotation, which says what is allowed, as in {example}")
    try:
        allowed(annotations[name])
        TypeAdapter(annotations[name]).validate_python(values[name])
    except ValidationError:
        pass  # the annotation works; the value is reported later, unless the command line replaces it
    except Exception as error:  # pydantic has no common class for annotations it cannot use
        reason = str(error).split(". ")[0]
        raise SettingsError(f"{place} has an annotation that says nothing: {reason}") from None


def _example(name: str, value: Any) -> str:
    kinds = " | ".join(sorted({type(item).__name__ for item in value})) if isinstance(value, tuple) else ""
    return f"{name}: {f'tuple[{kinds}, ...]' if kinds else type(value).__name__} = {value!r}"


def _assignments(text: str) -> dict[str, ast.stmt]:
    """The UPPER_CASE names that a source assigns, each with its statement."""
    found = {}
    for node in [node for node in ast.parse(text).body if isinstance(node, ast.Assign | ast.AnnAssign)]:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        found |= {name: node for name in names if name.isupper() and not name.startswith("_")}
    return found


def _around(lines: list[str], node: ast.stmt) -> tuple[str, str]:
    """The title of the statement's block, and its comment: after it and in the lines below with the same indent."""
    titles = [match[1] for line in lines[: node.lineno] if (match := re.match(r"# --- (.+?) -*$", line))]
    comment = [lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()]  # ast counts bytes
    indent = re.match(r"\s*", "".join(lines[node.end_lineno :][:1]))[0]
    comment += takewhile(re.compile(rf"{indent}#(?! ---)").match, lines[node.end_lineno :])
    return (titles or ["constants"])[-1], " ".join(line.strip(" #") for line in comment)


# --- what the code reads ----------------------------------------------------------------------------------------------
def _code(*patterns: str) -> dict[str, str]:
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8", "replace") for path in files}


@cache
def _needed() -> set[str]:
    """The settings that main.py and utils/ read: from `settings` anywhere, and from `s` in functions where it is one.

    This searches the text without docstrings, comments and calls, because parsing would take a tenth of a second.
    """
    code, found = "\n".join(_code("main.py", "utils/*.py").values()), set()
    for part in re.split(r"\n(?=[\w@])", re.sub(r'""".*?"""|(?-s:#.*)', "", code, flags=re.DOTALL)):
        is_settings = re.search(r"\bs: Settings\b|\bs\b[^=\n(]* = (?:settings|self)\b", part)
        named = r"(?<=[^\w/]settings\.)" + (r"|(?<=[^\w/]s\.)" if is_settings else "")
        found.update(re.findall(rf"s\.(?:{named})([a-z][a-z0-9_]*)\b(?!\()", part))  # `s.` first: fast to find
    return found - set(dir(BaseModel))


def _place(name: str) -> str:
    """The file and line where main.py or utils/ first read a name, as the end of a sentence."""
    for path, text in _code("main.py", "utils/*.py").items():
        for number, line in enumerate(text.split("\n"), 1):
            if re.search(rf"\bs(?:ettings)?\.{name}\b", line):
                return f" in {path}, line {number}"
    return ""


@cache
def _read() -> set[str]:
    """All that main.py, utils/ and experiments/ read from `s`, `settings` and variables annotated as Settings."""
    code = "\n".join(_code("main.py", "utils/*.py", "experiments/*.py").values())
    holders = "|".join({"s", "settings", *re.findall(r"(\w+): (?:\w+\.)?Settings\b", code)})
    by_name = re.findall(r"""\bgetattr\(\w+, ["']([a-z]\w*)""", code)
    return {*re.findall(rf"\b(?:{holders})\.([a-z][a-z0-9_]*)", code), *by_name}


def unread(params: Path = PARAMS) -> list[str]:
    """The constants that nothing reads, by their lower-case names. Raises SettingsError."""
    return [name for name in read_constants(params) if name not in _read()]


def unread_notes(params: Path = PARAMS) -> list[str]:
    """A line for the console about each constant that nothing reads. Raises SettingsError."""
    constants, names = read_constants(params), unread(params)
    hints = {name: _did_you_mean(name, constants.keys() - names, str.upper) for name in names}
    place = f"note       {params.name}, line"
    return [f"{place} {constants[name].line}: nothing reads {name.upper()}{hint}" for name, hint in hints.items()]


# --- the command line -------------------------------------------------------------------------------------------------
class Command(NamedTuple):
    """The content of the command line."""

    settings: Settings
    given: dict[str, Any]  # only the settings named there, checked; a resumed run compares them with its own
    resume: str | None  # the name or folder of the run to go on with


def read_command_line(argv: Sequence[str] | None = None, prog: str = "main.py", params: Path = PARAMS) -> Command:
    """The settings of params.py and the command line. Any mistake prints one line to stderr and exits with code 2."""
    argv = sys.argv[1:] if argv is None else argv
    # argparse takes -1e-3 for an option; a leading blank makes it a value. The only option with one dash is -h.
    argv = [f" {word}" if re.match("-[^-]", word) and word != "-h" else word for word in argv]
    try:
        constants = read_constants(params)
        namespace, strays = _parser(prog, constants).parse_known_args(argv)
        if strays:
            raise SettingsError(_stray(strays[0], argv, prog, constants))
        typed = vars(namespace)
        resume = typed.pop("resume")
        values = {name: _value(words, constants[name].annotation) for name, words in typed.items()}
        return Command(_build(values, "--", params), values, resume)
    except argparse.ArgumentError as error:
        refuse(prog, _misused(error.argument_name, constants) or f"{error.argument_name}: {error.message}")
    except SettingsError as error:
        refuse(prog, str(error))


def _value(typed: Any, annotation: Any) -> Any:
    """What was typed, converted to the annotation's type; if that fails, the text, which the model then refuses."""
    kind = _bare(annotation)
    if get_origin(kind) is tuple:
        words = re.findall(r"[^\s,()]+", " ".join(typed))  # 500 500 as well as 500,500 and "(500, 500)"
        return tuple(_value(word, get_args(kind)[0]) for word in words if words != ["none"])
    if isinstance(typed, str) and typed.startswith(" -"):
        typed = typed.strip()
    if typed == "none" and type(None) in get_args(kind):
        return None
    try:
        return TypeAdapter(kind).validate_strings(typed)
    except ValidationError:
        return typed


def _shown(value: Any) -> str:
    """A value as one types it on the command line."""
    return (" ".join(map(_written, value)) or "none") if isinstance(value, tuple) else _written(value)


def _option(name: str, value: bool = True) -> str:
    return ("--" if value else "--no-") + name.replace("_", "-")


def _misused(option: str, constants: dict[str, Constant], only_flags: bool = False) -> str | None:
    """The error for an option without its value, or for a flag with a value; None if it is neither."""
    name = option.split("/")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    if name in constants and constants[name].annotation is bool:
        return f"{_option(name)} takes no value; it is a flag: {_option(name)} turns it on, {_option(name, False)} off"
    if name not in constants or only_flags:
        return None
    return f"{_option(name)} lacks its value: {allowed(constants[name].annotation, typed=True)}"


def _stray(word: str, argv: Sequence[str], prog: str, constants: dict[str, Constant]) -> str:
    told = [_misused(before, constants, only_flags=True) for before, after in pairwise(argv) if after == word]
    word = word.strip()
    if any(told) and not word.startswith("-"):
        return next(filter(None, told))
    name = word.split("=")[0].strip("-").replace("-", "_").lower()
    hint = _did_you_mean(name, [*constants, "resume"], _option) or "; --help lists the options"
    return f"{prog} takes no {'option' if word.startswith('-') else 'argument'} {word!r}{hint}"


# --- help -------------------------------------------------------------------------------------------------------------
def _parser(prog: str, constants: dict[str, Constant]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--help] [--resume RUN] [--CONSTANT VALUE ...]",
        description="Train a variational autoencoder. Every constant of params.py is an\noption, for this run only.",
        epilog=f"""examples:
  {prog} --loss mse --latent-dim 2 --epochs 5
  {prog} --encoder-layers 500 500 --kl-schedule cyclical --run-name cycles
  {prog} --resume cycles --epochs 40""",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
        argument_default=argparse.SUPPRESS,  # options that were not named do not appear
        allow_abbrev=False,
        exit_on_error=False,
    )
    resume = "go on with an interrupted run (its name or folder)"
    parser.add_argument("--resume", metavar="RUN", default=None, help=resume)
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(c.group for c in constants.values())}
    for name, constant in constants.items():
        kind, choice = _bare(constant.annotation), f"{allowed(constant.annotation, typed=True)}; "
        taken = {"metavar": {int: "N", float: "X", str: "TEXT"}.get(kind, "WORD")}  # one word
        if kind is bool:
            taken, choice = {"action": argparse.BooleanOptionalAction}, ""
        elif get_origin(kind) is tuple:
            taken = {"nargs": "*", "metavar": "N"}
        words = f"{constant.comment} [{choice}default {_shown(constant.value)}]".replace("%", "%%")
        groups[constant.group].add_argument(_option(name), help=words, **taken)
    return parser
