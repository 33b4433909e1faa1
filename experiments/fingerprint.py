"""Recognise finished work by fingerprints of the code and of the settings that made it.

A fingerprint depends on what code does. New docstrings, comments or formatting do not make a result stale. A change in
any file of the project that the code imports, directly or through other files, does.
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
PLACES = {"output_dir", "data_dir", "run_name"}  # settings that say where a result is, and do not affect it


def fingerprint(texts: Iterable[str]) -> str:
    """Eight characters that differ if the texts differ."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def settings_that_count(settings: Settings) -> str:
    """The settings that identify a training, as a text.

    A constant is left out if no code reads it, or if it has its value of BEFORE. So a constant that is added later
    renames nothing. A user's own constant counts if code reads it: changing it in params.py is another training.
    """
    without_effect = {name for name, value in BEFORE.items() if getattr(settings, name) == value} | {*unread()}
    return json.dumps(settings.model_dump(mode="json", exclude=PLACES | without_effect), sort_keys=True)


# --- code -------------------------------------------------------------------------------------------------------------
def code_of(module: str, root: Path = ROOT) -> str:
    """A fingerprint of a module ("main", "utils.data") and of everything that it imports from the project."""
    return fingerprint(files_of(module, root).values())


def files_of(module: str, root: Path = ROOT) -> dict[Path, str]:
    """The files of a module and of all that it imports from the project, each with a fingerprint of its code.

    An import counts anywhere, also in a function or under an `if`. An import by a name that is made at run time is not
    found. Raises KeyError if there is no such module.
    """
    known, names, found = modules_of(root), [module], {}
    for name in names:  # the list grows during the loop
        path = known[name]
        found[path], imported = _read(path.read_bytes(), path.relative_to(root).parts[:-1])
        names += (imported & known.keys()).difference(names)
    return dict(sorted(found.items()))


def modules_of(root: Path = ROOT) -> dict[str, Path]:
    """The files of the project by the names of their modules."""
    files = [root / "main.py", *root.glob("utils/**/*.py"), *root.glob("experiments/**/*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@cache  # by the text, because each training asks for the same files, and parsing takes 0.2 seconds
def _read(source: bytes, folder: Sequence[str]) -> tuple[str, set[str]]:
    """A fingerprint of a source text, and the names of its imports."""
    tree = ast.parse(source)
    return fingerprint([without_docstrings(tree)]), imports_of(tree, folder)


def without_docstrings(tree: ast.Module) -> str:
    """The syntax tree of a source as a text, without docstrings; it removes them from the tree.

    Another version of Python may write the same tree differently. Finished work then counts as stale.
    """
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def imports_of(tree: ast.Module, folder: Sequence[str] = ()) -> set[str]:
    """The names of all modules that a source in a folder of the project may import.

    `from a.b import c` runs a, then a.b, and a.b.c if that is a module. The caller has to check whether it is.
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
    """Add to `found`, by name, the texts that identify a function (or class) of an experiment; return `found`.

    These are its own code, the code of the functions and classes of experiments/ that it uses, the constants that these
    use, and a fingerprint of each other module of the project that they use.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found[f"{function.__module__}.{function.__qualname__}"] = without_docstrings(tree)
    modules = imports_of(tree)
    functions = vars(function).values() if inspect.isclass(function) else [function]  # its methods
    names, codes = vars(inspect.getmodule(function)), [each.__code__ for each in functions if inspect.isfunction(each)]
    for code in codes:
        codes += [inner for inner in code.co_consts if inspect.iscode(inner)]  # functions defined inside it
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
