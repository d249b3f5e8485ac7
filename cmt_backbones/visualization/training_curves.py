"""The course of trainings: loss, learning rate and metrics over time, from mmengine's logs.

They are in `WORK_DIR/<timestamp>/vis_data/scalars.json`, which every training with MMDetection or
MMSegmentation writes.
"""
import json
import math
import re
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .panels import DrawingError

METRICS = r'mAP|mIoU'
COLUMNS = 4

# What is drawn of a run: {(name, 'iteration' or 'epoch'): {step: value}}.
Series = Dict[Tuple[str, str], Dict[int, float]]


def read_scalars(text: str, metrics: str = METRICS, parts: str = '(?!)') -> Series:
    """The curves in one log of mmengine's LocalVisBackend.

    Args:
        text: Lines of JSON. A training line has `loss`, `lr` and `iter`, and `epoch` where the
            loop counts these. A validation line has the metrics and, as `step`, the epoch or
            the iteration (LoggerHook's `log_metric_by_epoch`).
        metrics: Regular expression that the names of the wanted metrics contain.
        parts: The same for what else is wanted of training lines, such as `loss` for its parts; nothing.

    Returns:
        Series: Of `loss`, `lr`, the parts and the metrics. COCO's -1 (no such object) and what is not
        finite is left out.
    """
    series: Series = {}
    iteration = epoch = 0
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed or is being written
        if 'loss' in record:
            iteration, epoch = record['iter'], record.get('epoch', 0)
            # With rates by layer, `lr` is that of the first parameter.
            values = {'loss': record['loss'], 'lr': record.get('base_lr', record.get('lr')),
                      **{name: v for name, v in record.items() if re.search(parts, name)}}
            unit, step = 'iteration', iteration
        elif not iteration:
            continue  # a validation alone, of any weights
        else:
            values = {name: v for name, v in record.items() if re.search(metrics, name)}
            # A loop that counts no epochs may log by epoch all the same, then the 0th for ever.
            by_epoch = 0 < record['step'] <= epoch
            unit = 'epoch' if by_epoch else 'iteration'
            step = record['step'] if by_epoch else max(record['step'], iteration)
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0:
                series.setdefault((name, unit), {})[step] = value
    return series


def merge(older: Series, newer: Series) -> Series:
    """The curves of a run that went on as `newer`: this overrides `older` from its first step."""
    merged = {key: dict(curve) for key, curve in older.items()}
    for key, curve in newer.items():
        kept = {step: v for step, v in older.get(key, {}).items() if step < min(curve)}
        merged[key] = {**kept, **dict(sorted(curve.items()))}
    return merged


def read_run(work_dir: Path, metrics: str = METRICS) -> Series:
    """The curves of a run, over all times that it was resumed.

    Raises:
        DrawingError: The folder holds no log, or no training step has been logged.
    """
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))  # timestamps sort by time
    if not logs:
        raise DrawingError(f'{work_dir} holds no <timestamp>/vis_data/scalars.json: is it the '
                       'work_dir of a training?')
    series: Series = {}
    for log in logs:
        series = merge(series, read_scalars(log.read_text(encoding='utf-8'), metrics))
    if not series:
        raise DrawingError(f'{logs[-1]} has no training step yet.')
    return series


def plot(runs: Dict[str, Series], out: Path) -> None:
    """Draws named runs into the picture `out`."""
    keys = {key: None for series in runs.values() for key in series}  # in the order of the logs
    first = ['loss', 'lr']
    keys = sorted(keys, key=lambda key: first.index(key[0]) if key[0] in first else len(first))
    columns = min(COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(layout='constrained', figsize=(max(4.2 * columns, 5), 3.2 * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(keys):]:
        axis.remove()
    for axis, (name, unit) in zip(axes.flat, keys):
        for i, (run, series) in enumerate(runs.items()):
            curve = series.get((name, unit), {})
            few = 'o' if len(curve) < 30 else None
            axis.plot(list(curve), list(curve.values()), color=f'C{i}', marker=few, markersize=3.5,
                      linewidth=1.4, label=run)
        axis.set(title={'lr': 'learning rate'}.get(name, name), xlabel=unit,
                 ylabel={'lr': 'learning rate', 'loss': 'loss'}.get(name, name.split('/')[-1]))
        if name != 'lr':
            axis.set_ylim(bottom=0)
        else:
            axis.ticklabel_format(axis='y', scilimits=(-2, 2))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def names_of(work_dirs: Sequence[Path]) -> List[str]:
    """What the runs are called: their folders, after the folders around them where two are called alike."""
    dirs = [path.resolve() for path in work_dirs]
    names = [path.name for path in dirs]
    return names if len(set(names)) == len(names) else [f'{path.parent.name}/{path.name}' for path in dirs]
