"""Why there is no page of a run, in one line."""
import importlib.util
from typing import List

PACKAGES = ('plotly', 'jinja2', 'pycocotools')


class ReportError(Exception):
    """What was wrong, what was expected, what to do: one line."""


def reason(error: Exception) -> str:
    """What another's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_packages() -> None:
    """Refuses to start without the packages that a page needs beyond those of a training."""
    missing: List[str] = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ReportError(f'a report needs {" and ".join(missing)}: pip install {" ".join(missing)}')
