"""The commands of tools/, for tests."""
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(name, *arguments):
    """`python tools/NAME.py ARGUMENTS`, within this process; SystemExit if it refuses."""
    load(name).main([str(argument) for argument in arguments])


def load(name):
    """tools/NAME.py as a module; its folder is on the path while it is imported.

    For its `main`, and for what works without the package: what is worth testing else lies there.
    """
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as path:
        path.syspath_prepend(ROOT / 'tools')
        spec.loader.exec_module(module)
    return module
