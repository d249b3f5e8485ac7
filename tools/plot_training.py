"""Draws the course of trainings: `python tools/plot_training.py WORK_DIR... --out PNG`.

One panel each for the loss, the learning rate and every metric (mAP, mIoU) that the runs have
logged, one colour a run. It may be called while one trains.
"""
import argparse
import re
import sys
from pathlib import Path

from cmt_backbones.visualization.panels import DrawingError
from cmt_backbones.visualization.training_curves import METRICS, names_of, plot, read_run


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dirs', type=Path, nargs='+', metavar='WORK_DIR')
    parser.add_argument('--out', type=Path, required=True, metavar='PNG')
    parser.add_argument('--metrics', default=METRICS, metavar='REGEX',
                        help='what the names of the wanted metrics contain (default: %(default)s)')
    args = parser.parse_args(argv)
    try:
        runs = {name: read_run(path, args.metrics) for name, path in zip(names_of(args.work_dirs), args.work_dirs)}
        plot(runs, args.out)
    except (DrawingError, OSError, ValueError, re.error) as error:  # a format or REGEX that is none
        sys.exit(f'plot_training: {error}')
    print(args.out)


if __name__ == '__main__':
    main()
