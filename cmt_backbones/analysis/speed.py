"""Times models beside one another: `python tools/benchmark.py cmt-s:plain cmt-s --out benchmarks/x`.

One process, one run: models take turns, so that whatever else the machine does meets all of them, and
a ratio of medians stands where a time alone would not. Peak memory is measured in a process of its own for
each model, above what the loaded model takes. Beside them, the rate of a matrix product is measured, to
tell how near to the machine's limit a model is. Writes JSON, a Markdown table and a plot.
"""
import argparse
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmark_models import KNOWN, build, images, work
from get_flops import count

HUGE_PAGES = 'THP_MEM_ALLOC_ENABLE'  # PyTorch's switch: its large arrays on CPUs lie in huge pages
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


def timed(run, device):
    """Seconds that a callable takes."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def products(device, dtype):
    """The same product as matrices and as a 1x1 convolution; oneDNN's kernels differ from MKL's on CPUs."""
    n = 8192 if device.type == 'cuda' else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    pixels, weight = a[None, None].permute(0, 3, 1, 2), b[..., None, None]
    flop = 2 * n**3
    return flop, {'matrix product': lambda: a @ b, '1x1 convolution': lambda: torch.conv2d(pixels, weight)}


def prepare(spec, shape, args):
    """A callable for one model and size."""
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    model = build(spec).to(device)
    x = images(spec, args.batch, shape, device, torch.float32 if args.train else dtype)
    if dtype != torch.float32 and not args.train:
        model = model.to(dtype)
    run = work(model, x, args.train)
    if dtype == torch.float32 or not args.train:
        return run

    def with_autocast():  # as mmengine's --amp trains
        with torch.autocast(device.type, dtype):
            return run()
    return with_autocast


def peak_memory(spec, shape, args):
    """GB that the work takes at most, above those of the loaded model and libraries."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == 'cuda':
        run = prepare(spec, shape, args)
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    prepare(spec, (64, 64), args)()  # loads what is loaded on first use
    run = prepare(spec, shape, args)
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts from here
    before = status('VmRSS')
    for _ in range(3):  # malloc leaves gaps, so that later runs take more than the first
        run()
    return (status('VmHWM') - before) / 1e6


def status(field):
    """A number of kB from the kernel's books of this process."""
    return int(re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text())[1])


def same_weights(name, other):
    """Whether two forms of a backbone compute the same maps."""
    (family, *options), (family_of_other, *_) = name.split(':'), other.split(':')
    return family == family_of_other and 'flat' not in options and not Path(family).is_file()


def difference(out, reference):
    """The largest relative difference between two tuples of maps."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(out, reference))


def measure(args):
    """All models at all sizes.

    Returns:
        list[dict]: For each model and size its ``name``, ``shape``, ``seconds`` (each repeat), ``median``,
        ``images_per_second``, ``gmacs`` (for one image, forward), ``peak_gb`` and, where it has the weights
        of the first model, ``difference`` to that model's maps.
    """
    device = torch.device(args.device)
    flop, rates = products(device, DTYPES[args.dtype])
    cases = [dict(name=spec, shape=shape) for shape in args.shapes for spec in args.models]
    runs = {}
    for i, case in enumerate(tqdm(cases, desc='building, warming up', unit='model')):
        runs[i] = prepare(case['name'], case['shape'], args)
        out = runs[i]()
        if i % len(args.models) == 0:
            reference = out
        elif same_weights(case['name'], args.models[0]) and not args.train:
            case['difference'] = difference(out, reference)
    times = {i: [] for i in [*runs, *rates]}
    for _ in tqdm(range(args.repeats), desc='measuring, in turns', unit='round'):
        for i, run in {**runs, **rates}.items():
            times[i].append(timed(run, device))
    for i, case in enumerate(cases):
        median = statistics.median(times[i])
        case.update(seconds=times[i], median=median, images_per_second=args.batch / median)
    del runs
    for case in tqdm(cases, desc='multiply-adds', unit='model'):
        name, *options = case['name'].split(':')
        kept = ':'.join([name, *(o for o in options if o in ('plain', 'flat'))])
        case['gmacs'] = count(build(kept).to('meta'), case['shape'])['gmacs']
    if not args.no_memory:
        with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
            for case in tqdm(cases, desc='memory', unit='model'):
                case['peak_gb'] = pool.apply(peak_memory, (case['name'], case['shape'], args))
    gflops = {name: flop / statistics.median(times[name]) / 1e9 for name in rates}
    return cases, gflops


def environment(args):
    cpu = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    name = cpu[1] if cpu else platform.machine()
    env = dict(device=torch.cuda.get_device_name() if args.device == 'cuda' else name,
               threads=args.threads, torch=torch.__version__, dtype=args.dtype, batch=args.batch,
               work='training step' if args.train else 'inference', repeats=args.repeats)
    return dict(env, huge_pages='on') if os.environ.get(HUGE_PAGES) == '1' else env


def table(cases, gflops, env, command):
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


def plot(cases, env, path):
    """Bars for one size, curves over the number of pixels for several."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    panels = [('median', f"seconds for {env['batch']} image(s), {env['work']}")]
    if 'peak_gb' in cases[0]:
        panels.append(('peak_gb', 'peak memory above the model, GB'))
    names = list(dict.fromkeys(case['name'] for case in cases))
    labels = {name: Path(name).name if '.py' in name else name for name in names}
    single = len({case['shape'] for case in cases}) == 1
    figure, axes = plt.subplots(1, len(panels), squeeze=False, layout='constrained',
                                figsize=(6 * len(panels), 1 + .4 * len(names) if single else 4.5))
    for axis, (key, label) in zip(axes[0], panels):
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
            axis.set_xticks(list(ticks), ticks.values(), rotation=30, ha='right')
            axis.set_xticks([], minor=True)
            axis.set_title(label)
            axis.grid(alpha=.3)
            axis.legend()
    figure.suptitle(f"{env['device']}, {env['dtype']}", fontsize='medium')
    figure.savefig(path, dpi=120)


def size(text):
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match or min(map(int, match.groups())) < 32:
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, of at least 32 each')
    return tuple(map(int, match.groups()))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', metavar='MODEL', help=KNOWN)
    parser.add_argument('--shapes', nargs='+', type=size, default=[(800, 1280)], metavar='HxW',
                        help='sizes in pixels (default: 800x1280); several make curves')
    parser.add_argument('--batch', type=int, default=1, help='images at a time (default: 1)')
    parser.add_argument('--train', action='store_true', help='forward and backward instead of inference')
    parser.add_argument('--dtype', choices=DTYPES, default='float32', help='training: by autocast')
    parser.add_argument('--device', choices=('cpu', 'cuda'),
                        default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='of the CPU (default: all)')
    parser.add_argument('--no-memory', action='store_true', help='leave out the peak memory')
    parser.add_argument('--out', type=Path, metavar='PREFIX', help='write PREFIX.json, .md and .png')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        cases, gflops = measure(args)
    except ValueError as error:
        parser.error(str(error))
    env = environment(args)
    command = shlex.join(['python', 'tools/benchmark.py', *(argv or sys.argv[1:])])
    if 'huge_pages' in env:
        command = f'{HUGE_PAGES}=1 {command}'
    text = table(cases, gflops, env, command)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix('.json').write_text(
            json.dumps(dict(command=command, environment=env, gflops=gflops, cases=cases), indent=1) + '\n')
        args.out.with_suffix('.md').write_text(text)
        plot(cases, env, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
