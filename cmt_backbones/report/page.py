"""One HTML file of runs: plotly's script, styles, plots and pictures are all within it, so that it opens offline."""
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import jinja2
from plotly.offline import get_plotlyjs

from .. import __version__
from ..openmmlab.files import WholeFiles
from . import plots
from .detection_errors import KINDS, MEANING, MISSED, WORDS
from .errors import ReportError
from .findings import Findings
from .runs import Run

HERE = Path(__file__).parent
LARGEST = 10_000_000  # bytes of a page


class Told(NamedTuple):
    """All that the page tells of a run; `findings` is None where nothing could be evaluated."""
    run: Run
    facts: Dict[str, str]
    findings: Optional[Findings]
    told: List[str]


def percent(name: str, value: float, task: str) -> str:
    """A number as the evaluators of mmdet and mmseg print it: AP as 0.585, IoU as 58.50."""
    if value != value:
        return '–'
    if isinstance(value, int):
        return f'{value:,}'
    return f'{100 * value:.2f}' if task == 'segmentor' else f'{value:.3f}'


def render(runs: Sequence[Told], title: str) -> str:
    """The page of one run, or of several of a kind beside one another."""
    found = {one.run.name: one.findings for one in runs if one.findings is not None}
    task = runs[0].run.task
    several = len(runs) > 1
    training = plots.curves({one.run.name: one.run.series for one in runs})
    accuracy: List[plots.Plot] = []
    mistakes: List[plots.Plot] = []
    if found and task == 'detector':
        accuracy = [plots.by_class(found, ['AP', 'AP50', 'AP75'], 'AP by class', 'classes'), plots.by_size(found),
                    plots.by_iou(found), plots.precision_recall(found)]
        accuracy.sort(key=lambda plot: plot.wide)  # what goes across the page goes last
        mistakes = [plots.errors(found)]
    elif found:
        accuracy = [plots.by_class(found, ['IoU', 'boundary IoU'], 'IoU by class', 'classes', 100)]
        if several:
            accuracy.append(plots.by_class(found, ['boundary IoU'], 'IoU of boundaries by class', 'boundaries', 100))
    confusions = {name: plots.confusion(one, f'confusion_{i}') for i, (name, one) in enumerate(found.items())}
    figures = {plot.key: json.loads(plot.figure.to_json())
               for plot in [*training, *accuracy, *mistakes, *confusions.values()]}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(str(HERE)), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(number=percent, embedded=embedded, words=WORDS, meaning=MEANING,
                               kinds=[*KINDS, MISSED], by_cost=by_cost, colour=plots.colour)
    return environment.get_template('page.html').render(
        title=title, runs=runs, found=found, task=task, several=several, training=training, accuracy=accuracy,
        mistakes=mistakes, confusions=confusions, facts=table([one.facts for one in runs]),
        headlines=table([one.findings.headline if one.findings else {} for one in runs]),
        best=best_of(runs), figures=figures, results=results(runs), plotly=get_plotlyjs(), version=__version__,
        made=datetime.now().strftime('%Y-%m-%d %H:%M'), style=(HERE / 'page.css').read_text(encoding='utf-8'),
        script=(HERE / 'page.js').read_text(encoding='utf-8'))


def by_cost(findings: Findings) -> List[str]:
    return sorted([*KINDS, MISSED], key=lambda kind: -findings.errors[kind]['cost'])


def embedded(content: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(content, separators=(',', ':')).replace('<', '\\u003c')


def table(columns: Sequence[Dict[str, Any]]) -> List[tuple]:
    """Rows of a name and the values of each column, None where a column has none."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name) for column in columns]) for name in names]


def best_of(runs: Sequence[Told]) -> Dict[str, float]:
    """The highest value of each headline number, if there are several runs."""
    rows = table([one.findings.headline for one in runs if one.findings])
    return {name: max([value for value in values if value is not None and value == value], default=0.)
            for name, values in rows} if len(runs) > 1 else {}


def results(runs: Sequence[Told]) -> Dict[str, Any]:
    """The page's numbers without rounding, for programs: the element `results` holds them as JSON."""
    def known(values: Dict[str, Any]) -> Dict[str, Any]:
        return {name: None if value != value else value for name, value in values.items()}

    return {one.run.name: None if one.findings is None else dict(
        data=one.findings.data, headline=known(one.findings.headline), classes=[*map(known, one.findings.by_class)],
        confusion=one.findings.confusion.tolist(), errors=one.findings.errors, threshold=one.findings.threshold)
        for one in runs}


def write(runs: Sequence[Told], title: str, out: Path) -> int:
    """Writes the page of runs, whole or not at all, and returns its bytes.

    Raises:
        ReportError: It would be larger than what a page should be.
    """
    data = render(runs, title).encode()
    if len(data) > LARGEST:
        raise ReportError(f'the page would have {len(data) / 1e6:.1f} MB, and {LARGEST / 1e6:.0f} at most: take fewer '
                          'runs or fewer --pictures')
    WholeFiles().put(data, out)
    return len(data)
