"""params.py and the command line -> one checked, frozen Settings; whatever is wrong is told in one line.

The annotation of a constant in params.py is the only place that says what it may be. It checks the file, parses the
command line and is put in words for error messages and --help. No TensorFlow here: a typo is told before that loads.
"""

import argparse
import ast
import contextlib
import importlib.util
import inspect
import re
import sys
import tokenize
import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model, field_validator, model_validator
from pydantic_core import PydanticCustomError

from utils.console import Problem, refuse

PARAMS = Path(__file__).resolve().parent.parent / "params.py"

# The constants that the code reads. Names only, so that a renamed one is noticed; its annotation says what each may be.
NAMES = (
    "DATASET", "DATA_DIR", "IMAGE_SIZE", "IMAGE_CROP", "SKIP_BAD_IMAGES", "BINARIZE", "LABELS", "HELD_OUT",
    "ARCHITECTURE", "ENCODER_LAYERS", "DECODER_LAYERS", "CHANNELS", "RESIDUAL_BLOCKS", "ACTIVATION", "LATENT_DIM",
    "NOISE_DIM", "AUTOENCODER",
    "PRIOR", "PRIOR_COMPONENTS", "PRIOR_LAYERS", "PRIOR_UNITS",
    "LOSS", "RECONSTRUCTION_REDUCTION", "DECODER_SCALE",
    "KL_SCHEDULE", "KL_WEIGHT_START", "KL_WEIGHT_END", "KL_STEPS", "KL_CYCLES", "FREE_BITS",
    "BOUND", "BOUND_SAMPLES", "BOUND_CHUNK",
    "BATCH_SIZE", "EPOCHS", "LEARNING_RATE", "GRADIENT_CLIP", "LR_SCHEDULE", "MIXED_PRECISION",
    "SEED", "RUN_NAME", "START_FROM", "OUTPUT_DIR", "LOG_EVERY", "IMAGES_EVERY", "CHECKPOINT_EVERY", "NLL_SAMPLES",
)  # fmt: skip

# The constants that were added since commit 803fe99, each with the value that does what the code did without it. A run
# from before there was a constant is a run with this value. Whoever adds a constant adds it here too.
BEFORE: dict[str, Any] = {
    "image_size": 64, "image_crop": 0, "skip_bad_images": False,
    "architecture": "mlp", "channels": (32, 64, 128), "residual_blocks": 1, "mixed_precision": False,
}  # fmt: skip


class SettingsError(Problem, ValueError):
    """What is wrong with a constant, in one line: its name, its value and what is allowed."""

    exit_code = 2

    def __init__(self, message: str):
        """Keep to one line, even where a message of Python's own has several."""
        super().__init__(" ".join(message.split()))


# --- the model --------------------------------------------------------------------------------------------------------
class Settings(BaseModel):
    """Every constant of params.py, in lower case, checked and frozen. `settings_model` adds the fields."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _list_as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # JSON has no tuples

    @model_validator(mode="after")
    def _rules_across_constants(self) -> "Settings":
        if self.loss == "ce" and self.decoder_scale == "learned":
            raise _clash("decoder_scale", "loss", "whose Bernoulli has no scale; loss 'mse' or 'ad' is")
        if self.loss == "logistic" and self.decoder_scale == "fixed":
            raise _clash("decoder_scale", "loss", "whose width is learned; decoder_scale 'learned' is")
        if self.architecture != "mlp" and not self.channels:
            raise _clash("channels", "architecture", "which has at least one stage")
        if self.architecture != "mlp" and self.dataset not in ("mnist", "fashion_mnist") and self.image_size % 4:
            raise _clash("image_size", "architecture", "which halves images; multiples of 4 are")
        if self.autoencoder and self.noise_dim:
            raise _clash("noise_dim", "autoencoder", "which is trained without any noise")
        if self.autoencoder and self.prior != "standard":
            raise _clash("prior", "autoencoder", "which has no prior")
        if self.autoencoder and self.bound != "elbo":
            raise _clash("bound", "autoencoder", "which has none")
        if self.autoencoder and self.bound_samples > 1:
            raise _clash("bound_samples", "autoencoder", "which draws no samples")
        if self.prior == "realnvp" and self.latent_dim == 1:
            raise _clash("latent_dim", "prior", "whose layers couple one half of the latents to the other")
        if self.free_bits and self.prior != "standard":
            raise _clash("free_bits", "prior", "whose KL is not a sum over latents")
        if self.free_bits and self.bound != "elbo":
            raise _clash("free_bits", "bound", "whose weights are of all latents together")
        if self.free_bits and self.bound_samples > 1:
            raise _clash("free_bits", "bound_samples", "which may split a batch, and free bits are of a whole one")
        if self.reconstruction_reduction == "mean" and self.bound != "elbo":
            raise _clash("reconstruction_reduction", "bound", "whose weights are probabilities of whole images")
        if self.bound_samples > self.bound_chunk:
            raise _clash("bound_samples", "bound_chunk", "which has to hold the samples of one image at least")
        if self.kl_schedule == "cyclical" and self.kl_cycles > self.kl_steps:
            raise _clash("kl_cycles", "kl_steps", "which leaves a cycle less than a step; at most one cycle a step is")
        return self


def _clash(name: str, other: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("clash", reason, {"names": (name, other)})


@cache
def settings_model(params: Path = PARAMS) -> type[Settings]:
    """The Settings whose fields, annotations and defaults are the constants of params.py.

    Made on demand and not at import, so that a mistake in params.py is an error somebody tells. Raises SettingsError.
    """
    fields = {name: (constant.annotation, constant.value) for name, constant in read_constants(params).items()}
    return create_model("Settings", __base__=Settings, **fields)


def from_params(**overrides: Any) -> Settings:
    """The settings of params.py with some of them replaced: `from_params(latent_dim=2)`. Raises SettingsError."""
    return _build(overrides)


def load_saved(saved: dict[str, Any]) -> Settings:
    """The settings that `model_dump(mode="json")` wrote; SettingsError where they no longer fit params.py."""
    for name in settings_model().model_fields:
        if name not in saved:  # today's default may not be what the run was trained with
            raise SettingsError(f"saved {name} is missing")
    return _build(saved, "saved ")


def resumed(saved: Settings, given: dict[str, Any]) -> Settings:
    """The saved settings of a run that goes on, with `given` from the command line, of which few may differ.

    epochs may grow, skip_bad_images be turned on, and data_dir be where the same data are by now. output_dir is
    ignored: it says where the run was found. Raises SettingsError for a contradiction.
    """
    changed = {}
    for name, value in given.items():
        before = getattr(saved, name)
        if name == "output_dir" or value == before:
            continue
        if name == "data_dir" or (name in ("epochs", "skip_bad_images") and value > before):
            changed[name] = value
            continue
        typed = _option(name, value) if isinstance(value, bool) else f"{_option(name)} {_shown(value)}"
        rule = "a resumed run keeps its settings (only --epochs may grow)"
        raise SettingsError(f"{typed} contradicts the run's {_shown(before)}; {rule}")
    return saved.model_copy(update=changed)


def same_settings(own: Settings, chiefs: Settings, resumes: bool) -> Settings:
    """The settings of a worker that trains together with the chief: the chief's, but with this machine's places.

    A run that is resumed has the chief's settings anyhow. Raises SettingsError if those of a new run differ.
    """
    places = ("data_dir", "output_dir", "run_name", "start_from")  # which are where each machine has them
    for name in type(own).model_fields:
        here, there = getattr(own, name), getattr(chiefs, name)
        if not resumes and name not in places and here != there:
            raise SettingsError(f"{name}: {here!r} here, but {there!r} on the chief; all workers train with the same")
    return chiefs.model_copy(update={name: getattr(own, name) for name in ("data_dir", "output_dir")})


def _build(values: dict[str, Any], prefix: str = "", params: Path = PARAMS) -> Settings:
    """params.py with `values` in place of its own; the prefix says where they come from, "--" is the command line."""
    try:
        return settings_model(params).model_validate(values)
    except ValidationError as error:
        raise SettingsError(_explain(error.errors()[0], values, prefix, params)) from None


def _explain(error: Any, values: dict[str, Any], prefix: str, params: Path) -> str:
    """One of pydantic's errors in our words."""
    constants = read_constants(params)
    everything = {name: constant.value for name, constant in constants.items()} | values

    def place(name: str) -> str:
        if name not in values:
            return f"{params.name}, line {constants[name].line}: {name.upper()} = {everything[name]!r}"
        return f"{_option(name)}: {_shown(values[name])}" if prefix == "--" else f"{prefix}{name}: {values[name]!r}"

    if error["type"] == "clash":  # blame what was just typed rather than the file
        name, other = sorted(error["ctx"]["names"], key=lambda name: name not in values)
        return f"{place(name)} is not allowed with {other} {everything[other]!r}, {error['msg']}"
    name = error["loc"][0]
    if error["type"] == "extra_forbidden":
        return f"{place(name)} is not allowed; nothing reads that name{_did_you_mean(name, constants)}"
    annotation = constants[name].annotation
    words = allowed(annotation, typed=prefix == "--" and name in values)
    kinds = get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    return f"{place(name)} is not allowed; {words} is{_did_you_mean(everything[name], choices)}"


def _did_you_mean(word: Any, known: Iterable[str]) -> str:
    close = get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# --- annotations in words ---------------------------------------------------------------------------------------------
UNIONS = (Union, UnionType)  # A | B is the one or the other, depending on what A and B are
NOUNS = {bool: "True or False", int: "an integer", float: "a finite number"}
BOUNDS = {"ge": "of at least", "gt": "greater than", "le": "of at most", "lt": "less than"}
PLAIN_NAME = r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$"  # put in words here, as is ...
TFDS_NAME = r"^tfds:[a-z][a-z0-9_]*(/[A-Za-z0-9_.-]+)?(:[0-9.*]+)?$"  # ... this; any other pattern is shown as it is


def allowed(annotation: Any, typed: bool = False) -> str:
    """What an annotation allows, in words; `typed` on the command line, where texts and lists need no punctuation."""
    kind, rules = _bare(annotation), getattr(annotation, "__metadata__", ())
    if get_origin(kind) in UNIONS:
        return ", or ".join(allowed(choice, typed) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(", ".join(map(repr, get_args(kind))).rsplit(", ", 1))
    if get_origin(kind) is tuple:
        items = re.sub(r"^an? ((?:finite )?\w+)", r"\1s", allowed(get_args(kind)[0]))
        return f"none or a list of {items} as in 512 512" if typed else f"a tuple of {items} as in (512, 512) or ()"
    if kind is str:
        pattern = next((rule.pattern for rule in rules if hasattr(rule, "pattern")), None)
        if pattern == PLAIN_NAME:
            return "a name of letters, digits, '_', '-' and '.' that starts with neither '-' nor '.'"
        if pattern == TFDS_NAME:
            return "a name of TensorFlow Datasets as in 'tfds:cifar10'"
        return ("a text" if typed else "a text in quotes") + (f" that matches {pattern}" if pattern else "")
    bounds = [(words, getattr(rule, key, None)) for rule in rules for key, words in BOUNDS.items()]
    limits = [f"{words} {bound:,}" for words, bound in bounds if bound is not None]
    return f"{NOUNS.get(kind, kind)} {' and '.join(limits).replace('and of', 'and')}".strip()


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


# --- params.py --------------------------------------------------------------------------------------------------------
class Constant(NamedTuple):
    """A constant of params.py and what stands around it."""

    value: Any
    annotation: Any
    line: int
    group: str  # the title of its ruled block
    comment: str


@cache
def read_constants(params: Path = PARAMS) -> dict[str, Constant]:
    """The constants of params.py by their lower-case names, in the file's order. Raises SettingsError."""
    module, annotations = _import(params)
    assignments = _assignments(params)
    _check_names(params, module, assignments, annotations)
    lines = _source(params).split("\n")
    constants = {}
    for name, node in assignments.items():
        value, annotation = getattr(module, name), annotations[name]
        _check_annotation(f"{params.name}, line {node.lineno}: {name}", annotation, value)
        constants[name.lower()] = Constant(value, annotation, node.lineno, _group(lines, node), _comment(lines, node))
    return constants


def _import(params: Path) -> tuple[ModuleType, dict[str, Any]]:
    """params.py, imported from its path, and its annotations; whatever it raises becomes one line that says where."""
    spec = importlib.util.spec_from_file_location("params", params)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module, inspect.get_annotations(module, eval_str=True)
    except SyntaxError as error:
        raise SettingsError(f"{params.name}, line {error.lineno or 1}: {error.msg}: {error.text or ''}") from None
    except Exception as error:
        raise SettingsError(_import_error(error, vars(module), params)) from None


def _import_error(error: Exception, names: dict[str, Any], params: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(params)]
    if not lines:
        return f"{params.name}: {error}"
    place = f"{params.name}, line {lines[-1]}"
    for name, node in _assignments(params).items():
        if node.lineno <= lines[-1] <= node.end_lineno and node.value:
            place = f"{place}: {name} = {ast.get_source_segment(_source(params), node.value)}"
            with contextlib.suppress(Exception):  # another kind of error, or an annotation missing or wrong as well
                return place + _without_quotes(node, error, names)
    return f"{place}: {type(error).__name__}: {error}"


def _without_quotes(node: ast.AnnAssign, error: NameError, names: dict[str, Any]) -> str:
    """Tell LOSS = mse. Python evaluates a value before its annotation, so there is only the source of the latter."""
    if error.name not in [part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)]:
        raise error
    annotation = eval(ast.unparse(node.annotation), names)
    is_text = _bare(annotation) is str or get_origin(annotation) in (Literal, *UNIONS)
    return f" is not allowed; {allowed(annotation)} is" + (" (is a quote missing?)" if is_text else "")


def _check_names(params: Path, module: ModuleType, assignments: dict[str, Any], annotations: dict[str, Any]) -> None:
    """Refuse a constant that nothing reads, one without its annotation, and the lack of one that the code reads."""
    values = vars(module)
    missing = [name for name in NAMES if name not in assignments or name not in values]
    for name, node in assignments.items():
        place = f"{params.name}, line {node.lineno}: {name}"
        if name not in NAMES:
            renamed = get_close_matches(name, missing or NAMES, n=1) or missing[:1]
            hint = f" (did you mean {renamed[0]!r}?)" if renamed else ""
            raise SettingsError(f"{place} is not allowed; nothing reads that name{hint}")
        if name in values and name not in annotations:
            example = f"{name}: {type(values[name]).__name__} = {values[name]!r}"
            raise SettingsError(f"{place} has no annotation, which says what is allowed, as in {example}")
    if missing:
        raise SettingsError(f"{params.name}: {missing[0]} is missing; the code reads it")


def _check_annotation(place: str, annotation: Any, value: Any) -> None:
    try:
        allowed(annotation)
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        pass  # the annotation works; the value is told later, unless the command line replaces it
    except Exception as error:  # pydantic has no common class for annotations it cannot use
        reason = str(error).split(". ")[0]
        raise SettingsError(f"{place} has an annotation that says nothing: {reason}") from None


def _source(params: Path) -> str:
    with tokenize.open(params) as file:  # decodes as Python does
        return file.read()


def _assignments(params: Path) -> dict[str, Any]:
    """The UPPER_CASE names that the file assigns, each with its statement."""
    nodes = [node for node in ast.parse(_source(params)).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    named = [(ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]), node) for node in nodes]
    return {name: node for name, node in named if name.isupper() and not name.startswith("_")}


def _group(lines: list[str], node: ast.stmt) -> str:
    titles = [match[1] for line in lines[: node.lineno] if (match := re.match(r"# --- (.+?) -*$", line))]
    return titles[-1] if titles else "constants"


def _comment(lines: list[str], node: ast.stmt) -> str:
    """What follows the statement on its last line, and the comment lines right below, as far as one indent goes."""
    comment = [lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()]  # ast counts bytes
    below = lines[node.end_lineno :]
    indent = re.match(r"\s*", below[0])[0] if below else ""
    for line in below:
        if not re.match(rf"{indent}#(?! ---)", line):
            break
        comment.append(line)
    return " ".join(line.strip(" #") for line in comment)


# --- the command line -------------------------------------------------------------------------------------------------
class Command(NamedTuple):
    """What was asked for on the command line."""

    settings: Settings
    given: dict[str, Any]  # the settings that were named there, checked; a resumed run compares them with its own
    resume: str | None  # the name or folder of the run to go on with


def read_command_line(argv: Sequence[str] | None = None, prog: str = "main.py", params: Path = PARAMS) -> Command:
    """The settings of params.py and the command line. Any mistake prints one line to stderr and exits with code 2."""
    try:
        return _read(sys.argv[1:] if argv is None else argv, prog, params)
    except SettingsError as error:
        refuse(prog, str(error))


def _read(argv: Sequence[str], prog: str, params: Path) -> Command:
    constants = read_constants(params)
    # argparse takes -1e-3 for an option; a leading blank makes it a value. Of one dash there is only -h.
    argv = [f" {word}" if re.match("-[^-]", word) and word != "-h" else word for word in argv]
    try:
        namespace, strays = _parser(prog, constants).parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise SettingsError(_option_error(error, constants)) from None
    if strays:
        raise SettingsError(_stray(strays[0], argv, prog, constants))
    typed = vars(namespace)
    resume = typed.pop("resume")
    values = {name: _value(words, constants[name].annotation) for name, words in typed.items()}
    return Command(_build(values, "--", params), values, resume)


def _value(typed: Any, annotation: Any) -> Any:
    """What was typed, as the annotation's type. What cannot be that stays a text, which the model then refuses."""
    kind = _bare(annotation)
    if get_origin(kind) is tuple:
        words = re.findall(r"[^\s,()]+", " ".join(typed))  # 500 500 as well as 500,500 and "(500, 500)"
        return tuple(_value(word, get_args(kind)[0]) for word in words if words != ["none"])
    if isinstance(typed, str) and typed.startswith(" -"):
        typed = typed.strip()
    try:
        return TypeAdapter(kind).validate_strings(typed)
    except ValidationError:
        return typed


def _shown(value: Any) -> str:
    """A value as one types it on the command line."""
    return (" ".join(map(repr, value)) or "none") if isinstance(value, tuple) else repr(value)


def _option(name: str, value: bool = True) -> str:
    return ("--" if value else "--no-") + name.replace("_", "-")


def _option_error(error: argparse.ArgumentError, constants: dict[str, Constant]) -> str:
    name = error.argument_name.split("/")[0].removeprefix("--").replace("-", "_")  # a flag has two, of which the first
    if name in constants and constants[name].annotation is bool:
        return _flag_error(name)
    if name in constants:
        return f"{error.argument_name} lacks its value: {allowed(constants[name].annotation, typed=True)}"
    return f"{error.argument_name}: {error.message}"


def _flag_error(name: str) -> str:
    return f"{_option(name)} takes no value; it is a flag: {_option(name)} turns it on, {_option(name, False)} off"


def _stray(word: str, argv: Sequence[str], prog: str, constants: dict[str, Constant]) -> str:
    flags = {name: (_option(name), _option(name, False)) for name in constants if constants[name].annotation is bool}
    behind = [name for before, stray in pairwise(argv) for name in flags if before in flags[name] and stray == word]
    word = word.strip()
    if behind and not word.startswith("-"):
        return _flag_error(behind[0])
    name = word.split("=")[0].strip("-").replace("-", "_").lower()
    close = get_close_matches(name, [*constants, "resume"], n=1)
    hint = f" (did you mean {_option(close[0])}?)" if close else "; --help lists the options"
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
        argument_default=argparse.SUPPRESS,  # what was not named does not appear
        allow_abbrev=False,
        exit_on_error=False,
    )
    resume = "go on with an interrupted run (its name or folder)"
    parser.add_argument("--resume", metavar="RUN", default=None, help=resume)
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(c.group for c in constants.values())}
    for name, constant in constants.items():
        groups[constant.group].add_argument(_option(name), help=_help(constant), **_kind(constant.annotation))
    return parser


def _help(constant: Constant) -> str:
    choice = "" if constant.annotation is bool else allowed(constant.annotation, typed=True) + "; "
    return f"{constant.comment} [{choice}default {_shown(constant.value)}]".replace("%", "%%")


def _kind(annotation: Any) -> dict[str, Any]:
    """How argparse takes an option: as a flag, as a list or as one word."""
    kind = _bare(annotation)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return {"nargs": "*", "metavar": "N"}
    return {"metavar": {int: "N", float: "X", str: "TEXT"}.get(kind, "WORD")}
