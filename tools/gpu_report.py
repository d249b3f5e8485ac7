"""Tries everything on a GPU, in 20 minutes, and writes a page: `python tools/gpu_report.py work_dirs/gpu`."""
import argparse
from pathlib import Path

import torch

from cmt_backbones.analysis.gpu_report import parts, report


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='where gpu_report.md and its plots go')
    parser.add_argument('--rehearse', action='store_true',
                        help='run the same commands on a CPU, with small models and images: numbers mean nothing')
    args = parser.parse_args(argv)
    if not (args.rehearse or torch.cuda.is_available()):
        raise SystemExit('PyTorch finds no GPU: run this where `python -c "import torch; print(torch.cuda.'
                         'is_available())"` prints True')
    print(f'==> {report(args.folder, parts(args.folder, args.rehearse))}')


if __name__ == '__main__':
    main()
