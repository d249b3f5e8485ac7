"""Draws truth beside label maps: `python tools/draw_segmentation.py CONFIG PRED_DIR --out DIR`.

PRED_DIR is the folder that `tools/test.py CONFIG CHECKPOINT --out PRED_DIR` writes; images and
truth come from the test data of the config. Each of its first --images images becomes
DIR/<name of the image>.png, with the colours of the classes in it below, and all of them together
DIR/sheet.png. Pixels that the truth leaves open are white in it.
"""
import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

from cmt_backbones.openmmlab import ConfigError, config_with
from cmt_backbones.visualization.panels import DrawingError
from cmt_backbones.visualization.segmentation import draw_all, test_data


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path)
    parser.add_argument('predictions', type=Path, help='folder of test.py --out')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--images', type=int, default=12, help='how many (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error('--images takes at least 1')
    if not args.config.is_file():
        sys.exit(f'draw_segmentation: there is no file {args.config}')
    if not args.predictions.is_dir():
        sys.exit(f'draw_segmentation: there is no folder {args.predictions}')
    try:
        config = config_with(args.config, args.cfg_options)
        count = draw_all(test_data(config), args.predictions, args.images, args.out)
    except (ConfigError, DrawingError, OSError) as error:
        sys.exit(f'draw_segmentation: {error}')
    print(f'{args.out}: {count} pictures and sheet.png')


if __name__ == '__main__':
    main()
