"""From work_dirs to a page: reads runs, evaluates them, writes the file and says what is in it."""
import sys
from pathlib import Path
from typing import Optional, Sequence

from ..visualization.training_curves import names_of
from .errors import ReportError
from .findings import Findings, Options, evaluate, size_of_model
from .page import Told, percent, write
from .runs import facts, read_run

PICTURES = 60  # on a page, at most


def make(work_dirs: Sequence[Path], out: Path, options: Options, predictions: Sequence[Path] = (),
         checkpoints: Sequence[Path] = (), cfg_options: Optional[dict] = None, curves_only: bool = False) -> None:
    """Writes the page of runs and prints where it is.

    Args:
        work_dirs: Of trainings, all of detectors or all of segmentors.
        out: The page.
        options: How they are evaluated.
        predictions: Of `tools/test.py --out`, one for each run, or none.
        checkpoints: One for each run, or none for their best or last.
        cfg_options: Changes to the configs.
        curves_only: Whether to evaluate nothing.

    Raises:
        ReportError: In one line, why there is no page.
    """
    if len({path.resolve() for path in work_dirs}) < len(work_dirs):
        raise ReportError('the same folder is named twice')
    names = names_of(work_dirs)
    runs = [read_run(path, name, checkpoint, cfg_options) for path, name, checkpoint in
            zip(work_dirs, names, checkpoints or [None] * len(work_dirs))]
    if len({run.task for run in runs}) > 1:
        kinds = ', '.join(f'{run.name} is a {run.task}' for run in runs)
        raise ReportError(f'{kinds}: runs of one kind go on a page together, make one page for each kind')
    options = options._replace(pictures=max(1, min(options.pictures, PICTURES // (2 * len(runs)))))
    told = []
    for run, file in zip(runs, predictions or [None] * len(runs)):
        findings: Optional[Findings] = None
        data = None
        if not curves_only and (run.checkpoint or file):
            findings, data = evaluate(run, options, file)
        notes = [*run.told, *(findings.told if findings else [])]
        evaluated = {'Evaluated on': findings.data} if findings else {}
        told.append(Told(run, {**facts(run), **size_of_model(run, data), **evaluated}, findings, notes))
        for note in notes:
            print(f'report: {run.name}: {note}', file=sys.stderr)
    size = write(told, names[0] if len(names) == 1 else ' and '.join(names) if len(names) < 4 else
                 f'{len(names)} runs', out)
    for one in told:
        if one.findings:
            numbers = ', '.join(f'{name} {percent(name, value, one.run.task)}'
                                for name, value in one.findings.headline.items())
            print(f'{one.run.name}: {numbers} on {one.findings.data}')
    print(f'{out}: {size / 1e6:.1f} MB')
