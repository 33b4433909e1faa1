"""What recognises finished work: fingerprints of the code and of the settings that it was made by.

Code counts by what it does. A docstring, a comment or another formatting makes no result stale. A change in any file
of the project that the code imports does, however many files are between the two.
"""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from utils.settings import BEFORE, Settings, unread

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"output_dir", "data_dir", "run_name"}  # settings that say where a result is, and have no part in it


def fingerprint(texts: Iterable[str]) -> str:
    """Eight characters that differ where the texts do."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def settings_that_count(settings: Settings) -> str:
    """The settings that a training is known by, as a text.

    A constant that nothing reads is left out, and one that has its value of BEFORE: so one that is added later renames
    nothing. A user's own that is read counts, with whatever value it has: a change in params.py is another training.
    """
    without_effect = {name for name, value in BEFORE.items() if getattr(settings, name) == value} | {*unread()}
    return json.dumps(settings.model_dump(mode="json", exclude=PLACES | without_effect), sort_keys=True)


# --- code -------------------------------------------------------------------------------------------------------------
def code_of(module: str, root: Path = ROOT) -> str:
    """A fingerprint of what a module ("main", "utils.data") does, with all that it imports from the project."""
    return fingerprint(files_of(module, root).values())


def files_of(module: str, root: Path = ROOT) -> dict[Path, str]:
    """The files of a module and of all that it imports from the project, each with a fingerprint of what it does.

    An import counts wherever it stands: in a function too, and under an `if`. One whose name is made at run time is not
    seen. Raises KeyError if there is no such module.
    """
    known, names, found = modules_of(root), [module], {}
    for name in names:  # which grows
        path = known[name]
        found[path], imported = _read(path.read_bytes(), path.relative_to(root).parts[:-1])
        names += (imported & known.keys()).difference(names)
    return dict(sorted(found.items()))


def modules_of(root: Path = ROOT) -> dict[str, Path]:
    """The files of the project by the names of their modules."""
    files = [root / "main.py", *root.glob("utils/**/*.py"), *root.glob("experiments/**/*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@cache  # by the text: each training asks for the same files, and to parse them takes 0.2 seconds
def _read(source: bytes, folder: Sequence[str]) -> tuple[str, set[str]]:
    """A fingerprint of what a source does, and what it imports."""
    tree = ast.parse(source)
    return fingerprint([without_docstrings(tree)]), imports_of(tree, folder)


def without_docstrings(tree: ast.Module) -> str:
    """What a source does, as a text: its syntax tree without docstrings, which are taken out of the tree.

    Another version of Python may write the same tree otherwise; what is finished is then taken for stale.
    """
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def imports_of(tree: ast.Module, folder: Sequence[str] = ()) -> set[str]:
    """The names of all modules that a source in a folder of the project may import.

    `from a.b import c` runs a, then a.b, and a.b.c if that is a module: whether it is, is for the caller to see.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else ()  # one dot is the folder itself
            start = [*start, *(node.module.split(".") if node.module else ())]
            found += [[*start, alias.name] for alias in node.names]
    return {".".join(parts[:length]) for parts in found for length in range(1, len(parts) + 1)}


def sources(function: Callable, found: dict[str, str]) -> dict[str, str]:
    """Add to `found`, by name, what a function (or class) of an experiment is known by, and return it.

    These are its own code, that of the functions and classes of experiments/ that it uses, the constants that they use,
    and a fingerprint of each other module of the project that they use.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found[f"{function.__module__}.{function.__qualname__}"] = without_docstrings(tree)
    modules = imports_of(tree)
    functions = vars(function).values() if inspect.isclass(function) else [function]  # its methods
    names, codes = vars(inspect.getmodule(function)), [each.__code__ for each in functions if inspect.isfunction(each)]
    for code in codes:
        codes += [inner for inner in code.co_consts if inspect.iscode(inner)]  # of functions within it
        for name in code.co_names:
            used = inspect.unwrap(names.get(name))
            if inspect.ismodule(used):
                modules.add(used.__name__)
            elif inspect.isfunction(used) or inspect.isclass(used):
                if used.__module__.partition(".")[0] not in ("experiments", "__main__"):
                    modules.add(used.__module__)
                elif f"{used.__module__}.{used.__qualname__}" not in found:
                    sources(used, found)
            elif isinstance(used, int | float | str | tuple | list | dict):
                found[f"{function.__module__}.{name}"] = repr(used)
    found |= {name: code_of(name) for name in sorted(modules & modules_of().keys())}
    return found
