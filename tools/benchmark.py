"""Times models beside one another: `python tools/benchmark.py cmt-s:plain cmt-s --out benchmarks/x`.

How is told in cmt_backbones/analysis/speed.py. Prints a table in Markdown; writes it as well as JSON and a plot.
"""
import argparse
import os
import re
import shlex
import sys
from pathlib import Path

import torch

from cmt_backbones.analysis.named_models import KNOWN
from cmt_backbones.analysis.speed import DTYPES, HUGE_PAGES, Conditions, environment, measure
from cmt_backbones.analysis.speed_report import save, table


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
    conditions = Conditions(args.device, args.dtype, args.batch, args.train, args.threads, args.repeats,
                            memory=not args.no_memory)
    try:
        cases, gflops = measure(args.models, args.shapes, conditions)
    except ValueError as error:
        parser.error(str(error))
    env = environment(conditions)
    command = shlex.join(['python', 'tools/benchmark.py', *(argv or sys.argv[1:])])
    if 'huge_pages' in env:
        command = f'{HUGE_PAGES}=1 {command}'
    print(table(cases, gflops, env, command))
    if args.out:
        save(cases, gflops, env, command, args.out)


if __name__ == '__main__':
    main()
