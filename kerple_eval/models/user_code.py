"""Code of a user's own that a MODEL argument names, imported because the command says so.

``python:FILE.py:FUNCTION`` and ``python:module:function`` call a function of it; ``hf:PLACE,import=MODULE``
imports a package that registers an architecture with transformers.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import FrameType, ModuleType

from kerple_eval.support.files import is_file
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

#: A user's file is imported under a name that begins so, since two files may have the same name.
MODULE_PREFIX = "kerple_eval_user_"


#: Packages that compute what they are told to: where one raises, the code that called it is at fault.
LIBRARIES = ("torch", "numpy", "safetensors")


def frames_of(error: BaseException) -> list[tuple[str, int]]:
    """Where an error was raised, (module, line), outermost first; without what libraries called further in,
    but for an error of theirs alone.
    """
    frames = [(_origin(frame), number) for frame, number in traceback.walk_tb(error.__traceback__)]
    return [frame for frame in frames if frame[0].partition(".")[0] not in LIBRARIES] or frames


def _origin(frame: FrameType) -> str:
    """The module of a frame; of a user's file (``python:FILE.py:FUNCTION``) the name of the file."""
    file = frame.f_code.co_filename
    module = str(frame.f_globals.get("__name__", file))
    return Path(file).name if module.startswith(MODULE_PREFIX) else module


def load_file(path: Path) -> ModuleType:
    """The module of a file, its folder on the import path while it is loaded, as Python runs a script."""
    if not is_file(path):
        raise UserError(f"python:{path}: no such file")
    name = f"{MODULE_PREFIX}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _refusal(f"python:{path}", error) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def load_module(name: str, what: str) -> ModuleType:
    """The importable module ``name``; ``what`` is the part of the command that names it."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{what}: {quoted(name)} is no module's name; as in package.module")
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _refusal(what, error) from error


def sources_sha256(module: ModuleType) -> str | None:
    """Over the Python files of a package, by their names in it, or of a module that is one file.

    None for a module without a source file.
    """
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = {str(path.relative_to(folder)): path for folder in folders for path in folder.rglob("*.py")}
    if not folders and (file := getattr(module, "__file__", None)) and file.endswith(".py"):
        files = {Path(file).name: Path(file)}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return digest.hexdigest() if files else None


def _refusal(what: str, error: BaseException) -> UserError:
    reason = f"{type(error).__name__}: {quoted(str(error), 200)}"
    return UserError(f"{what}: cannot be imported ({reason}); --traceback shows where")
