"""The results of :mod:`.speed` as JSON, as a table in Markdown and as a plot."""
import json
import math
from pathlib import Path
from typing import Any, Dict, Sequence

Case = Dict[str, Any]  # of :func:`.speed.measure`


def table(cases: Sequence[Case], gflops: Dict[str, float], env: Dict[str, Any], command: str) -> str:
    """The Markdown of a result; ratios are to the first model, at each size."""
    rows = [('model', 'size', 'median s (min to max)', 'times as fast as the first', 'images/s', 'GMAC',
             'share of the matrix-product rate', 'peak GB', 'difference'), ['---'] * 9]
    firsts = {}
    for case in cases:
        first = firsts.setdefault(case['shape'], case['median'])
        share = 2 * case['gmacs'] * env['batch'] / case['median'] / gflops['matrix product']
        rows.append((
            case['name'], '{}x{}'.format(*case['shape']),
            f"{case['median']:.4g} ({min(case['seconds']):.4g} to {max(case['seconds']):.4g})",
            f"{first / case['median']:.2f}", f"{case['images_per_second']:.3g}", f"{case['gmacs']:.1f}",
            f'{share:.0%}' if env['work'] == 'inference' else '',
            f"{case['peak_gb']:.2f}" if 'peak_gb' in case else '',
            f"{case['difference']:.0e}" if 'difference' in case else ''))
    facts = [f'{key} {value}' for key, value in env.items()]
    facts += [f'{name} {rate:.0f} GFLOP/s' for name, rate in gflops.items()]
    lines = [f'`{command}`', '', ', '.join(facts) + '.', '', *(f"| {' | '.join(row)} |" for row in rows)]
    return '\n'.join(lines) + '\n'


def plot(cases: Sequence[Case], env: Dict[str, Any], path: Path) -> None:
    """Bars for one size, curves over the number of pixels for several."""
    from matplotlib.figure import Figure
    panels = [('median', f"seconds for {env['batch']} image(s), {env['work']}")]
    if 'peak_gb' in cases[0]:
        panels.append(('peak_gb', 'peak memory above the model, GB'))
    names = list(dict.fromkeys(case['name'] for case in cases))
    labels = {name: Path(name).name if '.py' in name else name for name in names}
    single = len({case['shape'] for case in cases}) == 1
    figure = Figure(layout='constrained', figsize=(6 * len(panels), 1 + .4 * len(names) if single else 4.5))
    for axis, (key, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name in names:
            mine = [case for case in cases if case['name'] == name]
            if single:
                bar = axis.barh(labels[name], mine[0][key])
                axis.bar_label(bar, fmt='%.3g', padding=2)
            else:
                pixels = [case['shape'][0] * case['shape'][1] for case in mine]
                axis.loglog(pixels, [case[key] for case in mine], marker='o', label=labels[name])
        if single:
            axis.invert_yaxis()
            axis.margins(x=.15)
            axis.set_xlabel(label)
        else:
            ticks = {math.prod(case['shape']): '{}x{}'.format(*case['shape']) for case in cases}
            axis.set_xticks(list(ticks))
            axis.set_xticklabels(ticks.values(), rotation=30, ha='right')
            axis.set_xticks([], minor=True)
            axis.set_title(label)
            axis.grid(alpha=.3)
            axis.legend()
    figure.suptitle(f"{env['device']}, {env['dtype']}", fontsize='medium')
    figure.savefig(path, dpi=120)


def save(cases: Sequence[Case], gflops: Dict[str, float], env: Dict[str, Any], command: str, prefix: Path) -> None:
    """Writes PREFIX.json, PREFIX.md and PREFIX.png."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    result = dict(command=command, environment=env, gflops=gflops, cases=cases)
    prefix.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    prefix.with_suffix('.md').write_text(table(cases, gflops, env, command), encoding='utf-8')
    plot(cases, env, prefix.with_suffix('.png'))
