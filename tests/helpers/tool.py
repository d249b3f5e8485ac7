"""The commands of tools/, for tests."""
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(name, *arguments):
    """`python tools/NAME.py ARGUMENTS`, within this process; SystemExit if it refuses."""
    load(name).main([str(argument) for argument in arguments])


def load(name):
    """tools/NAME.py as a module, without its folder on the path.

    For its `main`, and for what works without the package: what is worth testing else lies there.
    """
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
