"""Draws truth beside detections: `python tools/draw_detections.py CONFIG PREDICTIONS --out DIR`.

PREDICTIONS is the file that `tools/test.py CONFIG CHECKPOINT --out FILE.pkl` writes; the truth
comes from the test data of the config. Each of the first --images images becomes
DIR/<name of the image>.png, and all of them together DIR/sheet.png.
"""
import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

from cmt_backbones.openmmlab import ConfigError, config_with
from cmt_backbones.visualization.detections import draw_all, read_predictions, test_data
from cmt_backbones.visualization.panels import DrawingError


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path)
    parser.add_argument('predictions', type=Path, help='.pkl file of test.py --out')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--images', type=int, default=12, help='how many (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.4, help='default: %(default)s')
    parser.add_argument('--alone', action='store_true', help='leave out image and truth, for data '
                        'whose licence forbids to show it')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error('--images takes at least 1')
    for path in (args.config, args.predictions):
        if not path.is_file():
            sys.exit(f'draw_detections: there is no file {path}')
    try:
        config = config_with(args.config, args.cfg_options)
        predictions = read_predictions(args.predictions)[:args.images]
        draw_all(test_data(config), predictions, args.score_thr, args.out, args.alone)
    except (ConfigError, DrawingError, OSError) as error:
        sys.exit(f'draw_detections: {error}')
    print(f'{args.out}: {len(predictions)} pictures and sheet.png')


if __name__ == '__main__':
    main()
