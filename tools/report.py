"""One HTML page of runs: `python tools/report.py WORK_DIR [WORK_DIR ...]`.

What was trained, curves, AP or IoU by class, confusions, what errors cost, the best and the worst images. It opens
without a network. Several runs of a kind lie beside one another. docs/training.md tells more.
"""
import argparse
import sys
import warnings
from pathlib import Path

import torch
from mmengine.config import DictAction

from cmt_backbones import openmmlab
from cmt_backbones.report.errors import ReportError, check_packages


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dirs', type=Path, nargs='+', metavar='WORK_DIR', help='of tools/train.py')
    parser.add_argument('--out', type=Path, metavar='HTML', help='the page (default: report.html in the first)')
    parser.add_argument('--predictions', type=Path, nargs='+', default=[], metavar='PATH',
                        help='what test.py --out wrote of each run, which is not computed again then')
    parser.add_argument('--checkpoint', type=Path, nargs='+', default=[], metavar='FILE',
                        help='of each run; its best, else its last by default')
    parser.add_argument('--split', choices=['val', 'test'],
                        help='what is evaluated: val by default, test with --predictions')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='such as cuda:0')
    parser.add_argument('--max-images', type=int, metavar='N', help='evaluate no more, from all over the set')
    parser.add_argument('--pictures', type=int, default=6, metavar='N',
                        help='best images and worst images of each run (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, metavar='SCORE',
                        help='of confusions and pictures; that of the best F1 by default')
    parser.add_argument('--curves-only', action='store_true', help='evaluate nothing')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the configs, such as val_dataloader.dataset.data_root=data/coco/')
    args = parser.parse_args(argv)
    for name in ('predictions', 'checkpoint'):
        if getattr(args, name) and len(getattr(args, name)) != len(args.work_dirs):
            parser.error(f'--{name} takes one for each WORK_DIR')
    if min(args.max_images or 1, args.pictures) < 1:
        parser.error('--max-images and --pictures take at least 1')
    args.split = args.split or ('test' if args.predictions else 'val')
    return args


def main(argv=None):
    args = parse_args(argv)
    warnings.filterwarnings('ignore', category=UserWarning, module=r'mm(det|seg)\.')  # of their own deprecated parts
    with openmmlab.one_line_errors('report'):
        report(args)


def report(args):
    openmmlab.read_without_pickle()
    try:
        check_packages()
        from cmt_backbones.report.making import Options, make
        options = Options(args.split, args.device, args.max_images, args.pictures, args.score_thr)
        make(args.work_dirs, args.out or args.work_dirs[0] / 'report.html', options, args.predictions, args.checkpoint,
             args.cfg_options, args.curves_only)
    except (ReportError, OSError) as error:
        sys.exit(f'report: {error}')


if __name__ == '__main__':
    main()
