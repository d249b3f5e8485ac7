"""The plots of a page, as plotly's figures; several runs lie in one plot, a colour each."""
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import plotly.graph_objects as go

from ..visualization.training_curves import Series
from .detection import IOU_50, IOU_75, SIZES
from .detection_errors import KINDS, MEANING, MISSED, WORDS
from .findings import Findings

COLOURS = ['#2f6fb3', '#d97a1e', '#2a9073', '#b4436c', '#7b62b5', '#8a7a2e', '#4aa3c7', '#a0522d']
POINTS = 800  # of a curve, at most
MANY = 20  # classes: more have thinner plots
RECALLS = np.linspace(0, 1, 101).round(2).tolist()
MAIN = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75', 'coco/segm_mAP', 'mIoU', 'mAcc', 'aAcc')


class Plot:
    """A figure, and what the page says above and below it."""

    def __init__(self, key: str, title: str, figure: go.Figure, note: str = '',
                 choices: Optional[Dict[str, List[Any]]] = None, wide: int = 0) -> None:
        self.key, self.title, self.figure, self.note = key, title, figure, note
        self.wide = wide  # pixels that it needs at least, across the page
        self.choices = choices or {}  # by the name of a button, which of the figure's curves it shows


def layout(x: str = '', y: str = '', height: int = 340, **others: Any) -> dict:
    """What all plots share; fonts and the colours of lines and ground are the page's."""
    return dict(height=height, margin=dict(l=56, r=16, t=12, b=48), hovermode='closest', xaxis=dict(title=x),
                yaxis=dict(title=y), legend=dict(orientation='h', y=1.02, yanchor='bottom', x=0), **others)


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def plain(values: Sequence[float], digits: int = 6) -> List[Optional[float]]:
    """Numbers for JSON, which has no NaN."""
    return [None if not np.isfinite(value) else round(float(value), digits) for value in values]


def thinned(curve: Dict[int, float]) -> Tuple[List[int], List[float]]:
    """Every so manieth point of a curve, and the last."""
    steps = list(curve)
    step = -(-len(steps) // POINTS)
    kept = steps[:-1:step] + steps[-1:]
    return kept, [float(f'{curve[at]:.6g}') for at in kept]


# ---------------------------------------------------------------------------- training


def curves(runs: Dict[str, Series]) -> List[Plot]:
    """Loss, metrics and learning rate over the training, and gradients where they were logged."""
    names = list(dict.fromkeys(name for series in runs.values() for name, unit in series))
    losses = [name for name in names if 'loss' in name]
    others = [name for name in names if name not in losses and name not in ('lr', 'grad_norm', 'memory')]
    main = [name for name in others if name in MAIN] or others[:3]
    plots = []
    several = len(runs) > 1
    for key, title, chosen, visible in [
            ('loss', 'Loss', sorted(losses, key=lambda name: name != 'loss'), losses),
            ('metrics', 'Validation', [*main, *(name for name in others if name not in main)], main),
            ('rate', 'Learning rate', ['lr'], ['lr']),
            ('gradients', 'Norm of gradients', ['grad_norm'], ['grad_norm'])]:
        figure, unit = lines_of(runs, chosen, chosen[:1] if several else visible)
        if figure.data:
            figure.update_layout(**layout(unit, '', 340))
            figure.update_yaxes(exponentformat='e')
            figure.update_layout(hovermode='x unified' if key == 'loss' and not several else 'closest')
            drawn = [trace.meta for trace in figure.data]
            choices = {name.split('/')[-1]: [one == name for one in drawn] for name in dict.fromkeys(drawn)}
            plots.append(Plot(key, title, figure,
                              'Click on a name to show or hide its curve.' if len(choices) > 1 and not several else '',
                              choices if len(choices) > 1 and several else None))
    return plots


def lines_of(runs: Dict[str, Series], names: Sequence[str], visible: Sequence[str]) -> Tuple[go.Figure, str]:
    """A line for each run and name, that in `meta`: runs differ by colour; of one run, names."""
    figure, units = go.Figure(), []
    for i, (run, series) in enumerate(runs.items()):
        for j, name in enumerate(names):
            for (found, unit), curve in series.items():
                if found != name or not curve:
                    continue
                units.append(unit)
                x, y = thinned(curve)
                short = name.split('/')[-1]
                label = run if len(runs) > 1 else {'lr': 'learning rate'}.get(short, short)
                strong = name in ('loss', 'lr') or name in MAIN[:1] or name == 'mIoU'
                figure.add_scatter(
                    x=x, y=y, name=label, meta=name, mode='lines+markers' if len(x) < 25 else 'lines',
                    visible=True if name in visible else len(runs) == 1 and 'legendonly', marker=dict(size=6),
                    line=dict(color=colour(j if len(runs) == 1 else i), width=2.2 if strong else 1.4),
                    hovertemplate=f'{unit} %{{x}}: %{{y:.4g}}<extra>{label}</extra>')
    return figure, ' / '.join(dict.fromkeys(units))


# ---------------------------------------------------------------------------- detectors


def by_size(runs: Dict[str, Findings]) -> Plot:
    figure = go.Figure(layout=layout('', 'AP', 340))
    for i, (run, found) in enumerate(runs.items()):
        values = plain([found.results.average(size=k) for k in range(len(SIZES))])
        figure.add_bar(x=list(SIZES), y=values, name=run, marker=dict(color=colour(i)), text=shown(values),
                       textposition='outside', cliponaxis=False,
                       hovertemplate='%{x} objects: AP %{y:.4f}<extra>' + run + '</extra>')
    figure.update_layout(showlegend=len(runs) > 1, yaxis=dict(range=[0, 1.08 * top(figure)]))
    return Plot('sizes', 'AP by size', figure, 'COCO’s sizes: small is less than 32² pixels, large more than 96². '
                'A size without objects has no bar.')


def shown(values: Sequence[Optional[float]]) -> List[str]:
    return ['' if value is None else f'{value:.3f}' for value in values]


def top(figure: go.Figure) -> float:
    """The highest bar, so that there is room for a number above it."""
    return max([value for trace in figure.data for value in trace.y if value is not None] + [0.05])


def by_iou(runs: Dict[str, Findings]) -> Plot:
    """Of one run a line for each class, too."""
    figure = go.Figure(layout=layout('IoU', 'AP', 380))
    for i, (run, found) in enumerate(runs.items()):
        ious = [round(iou, 2) for iou in found.results.ious]
        lines = [('all classes' if len(runs) == 1 else run, slice(None), colour(i), 3.)]
        if len(runs) == 1 and 1 < len(found.classes) <= MANY:
            lines += [(name, k, colour(k + 1), 1.4) for k, name in enumerate(found.classes)]
        for name, label, ink, width in lines:
            figure.add_scatter(
                x=ious, y=plain([found.results.average(at, label) for at in range(len(ious))]), name=name,
                mode='lines+markers', line=dict(color=ink, width=width), marker=dict(size=5),
                hovertemplate='IoU %{x}: AP %{y:.4f}<extra>' + name + '</extra>')
    figure.update_yaxes(rangemode='tozero')
    return Plot('ious', 'AP by IoU', figure, 'How well boxes fit: AP when a detection must overlap an object by at '
                'least that IoU. COCO’s AP is the mean of the line.')


def by_class(runs: Dict[str, Findings], columns: Sequence[str], title: str, key: str, factor: float = 1) -> Plot:
    """Bars for each class, the best first: of one run all columns, of several or of many classes the first of each.

    Args:
        factor: Of the values: 100 for percent.
    """
    names = list(dict.fromkeys(name for found in runs.values() for name in found.classes))
    many = len(names) > MANY
    rows = {run: {row['name']: row for row in found.by_class} for run, found in runs.items()}
    columns = columns[:1] if len(runs) > 1 or many else columns
    first = {name: row[columns[0]] for name, row in next(iter(rows.values())).items()}
    names.sort(key=lambda name: first[name] if first.get(name, -1) >= 0 else -1, reverse=many)
    figure = go.Figure()
    for i, (run, what) in reversed(list(enumerate((run, what) for run in runs for what in columns))):
        values = plain([factor * rows[run].get(name, {}).get(what, float('nan')) for name in names])
        label = run if len(runs) > 1 else what
        number = 'y' if many else 'x'
        figure.add_bar(**(dict(x=names, y=values) if many else dict(y=names, x=values, orientation='h')), name=label,
                       marker=dict(color=colour(i)), legendrank=i,
                       hovertemplate=f'%{{{"x" if many else "y"}}}: {what} %{{{number}:.4f}}<extra>{label}</extra>')
    if many:
        figure.update_layout(**layout('', columns[0], 400, bargap=0.25, showlegend=len(runs) > 1))
        figure.update_xaxes(automargin=True, tickangle=-90, dtick=1, tickfont=dict(size=10.5))
        return Plot(key, title, figure, wide=13 * len(names))
    height = 110 + len(names) * (10 + 11 * len(figure.data))
    figure.update_layout(**layout(columns[0] if len(runs) > 1 else '', '', max(340, height), bargap=0.25))
    figure.update_yaxes(automargin=True, ticksuffix='  ')
    figure.update_xaxes(rangemode='tozero')
    return Plot(key, title, figure)


def precision_recall(runs: Dict[str, Findings]) -> Plot:
    """At an IoU of 0.5 or 0.75, by a button; of one run a curve for each class, of several their means."""
    figure = go.Figure(layout=layout('recall', 'precision', 360))
    visible: Dict[int, List[Any]] = {IOU_50: [], IOU_75: []}  # for plotly: True, False or 'legendonly'
    for iou in visible:
        for i, (run, found) in enumerate(runs.items()):
            precision, scores = (values[iou, :, :, 0] for values in (found.results.precision, found.results.scores))
            known = [k for k in range(precision.shape[1]) if precision[0, k] > -1]
            if not known:
                continue
            lines = [('all classes' if len(runs) == 1 else run, precision[:, known].mean(1), None, colour(i), 3.)]
            if len(runs) == 1 and len(known) > 1:
                lines += [(found.classes[k], precision[:, k], scores[:, k], colour(k + 1), 1.4) for k in known]
            for name, values, score, ink, width in lines:
                when = 'legendonly' if score is not None and len(known) > MANY else True
                score_text = '' if score is None else ', score from %{customdata:.2f}'
                figure.add_scatter(
                    x=RECALLS, y=plain(values, 4), name=name, mode='lines', visible=iou == IOU_50 and when,
                    customdata=None if score is None else plain(score, 3), line=dict(color=ink, width=width),
                    hovertemplate=f'recall %{{x}}: precision %{{y:.3f}}{score_text}<extra>{name}</extra>')
                for wanted, one in visible.items():
                    one.append(iou == wanted and when)
    figure.update_layout(xaxis=dict(range=[0, 1.01]), yaxis=dict(range=[0, 1.03]))
    if len(figure.data) > 16:  # names in rows would take the plot's place
        figure.update_layout(legend=dict(orientation='v', x=1.02, xanchor='left', y=1, yanchor='top'))
    return Plot('precision_recall', 'Precision and recall', figure, 'Precision when so many of the objects are '
                'found, by COCO’s 101 steps. The area below a curve is its AP at that IoU.',
                {'IoU 0.5': visible[IOU_50], 'IoU 0.75': visible[IOU_75]})


def errors(runs: Dict[str, Findings]) -> Plot:
    """What each kind of error costs, the most at the top."""
    kinds = [*KINDS, MISSED]
    first = next(iter(runs.values())).errors
    kinds.sort(key=lambda kind: first[kind]['cost'])
    figure = go.Figure()
    for i, (run, found) in reversed(list(enumerate(runs.items()))):
        costs = plain([found.errors[kind]['cost'] for kind in kinds])
        texts = [f"{found.errors[kind]['count']:,} {'objects' if kind == MISSED else 'detections'} {MEANING[kind]}"
                 for kind in kinds]
        figure.add_bar(y=[WORDS[kind] for kind in kinds], x=costs, orientation='h', name=run, customdata=texts,
                       marker=dict(color=colour(i)), text=shown(costs), textposition='outside', cliponaxis=False,
                       legendrank=i,
                       hovertemplate='%{y} costs %{x:.4f} AP50<br>%{customdata}<extra>' + run + '</extra>')
    figure.update_layout(**layout('AP50', '', 130 + 34 * len(kinds) +
                                  12 * len(kinds) * (len(runs) - 1), showlegend=len(runs) > 1))
    highest = max([value for trace in figure.data for value in trace.x if value is not None] + [0.01])
    figure.update_xaxes(range=[0, 1.25 * highest])
    figure.update_yaxes(automargin=True, ticksuffix='  ')
    return Plot('errors', 'What errors cost', figure, 'The AP at an IoU of 0.5 that mending all errors of one kind, '
                'and nothing else, would add.')


# ---------------------------------------------------------------------------- both


def confusion(found: Findings, key: str) -> Plot:
    """Rows true, each by its share; numbers are shown where there is room."""
    detector = found.threshold is not None
    rows = [*found.classes, 'background'] if detector else found.classes
    columns = [*found.classes, 'not found'] if detector else found.classes
    matrix = found.confusion
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(rows) <= 13
    text = [[(f'{n:,}' if detector else f'{share:.2f}') if n else '' for n, share in zip(*pair)]
            for pair in zip(matrix.tolist(), shares.tolist())]
    figure = go.Figure(go.Heatmap(
        z=[plain(row, 4) for row in shares], x=columns, y=rows, zmin=0, zmax=1, customdata=matrix.tolist(),
        text=text if few else None, texttemplate='%{text}' if few else None, xgap=int(few), ygap=int(few),
        colorscale=[[0, 'rgba(47,111,179,0.04)'], [1, 'rgba(47,111,179,0.62)']],
        colorbar=dict(thickness=10, outlinewidth=0, tickformat='.0%', len=0.9),
        hovertemplate=('true: %{y}<br>' + ('detected' if detector else 'predicted') + ': %{x}<br>%{customdata:,} '
                       + ('objects' if detector else 'pixels') + ', %{z:.1%} of the row<extra></extra>')))
    side = min(900, max(340, 130 + 34 * len(rows) if few else 18 * len(rows)))
    figure.update_layout(**layout('detected as' if detector else 'predicted', 'true class', side))
    figure.update_yaxes(autorange='reversed', automargin=True, showgrid=False)
    figure.update_xaxes(automargin=True, showgrid=False, tickangle=-40)
    if detector:
        note = (f'One detection for one object at an IoU of 0.5, from a score of {found.threshold:.2f} on. A row is '
                'what the objects of a class were taken for; the last row are detections of nothing.')
    else:
        note = 'A row is what the pixels of a class were taken for, in shares of them.'
    return Plot(key, 'Confusion matrix', figure, note)
