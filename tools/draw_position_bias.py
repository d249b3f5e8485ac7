"""Shows what resizing does to a position bias: `python tools/draw_position_bias.py --out PNG`.

What the picture has and what the printed correlations mean is told in
cmt_backbones/visualization/position_bias.py.
"""
import argparse
from pathlib import Path

from cmt_backbones.visualization.position_bias import WAYS, draw


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, metavar='PNG')
    parser.add_argument('--native', type=int, default=224, metavar='PIXELS',
                        help='side of the images that the table was learned on (default: 224, CMT-S)')
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1280], metavar=('H', 'W'),
                        help='height and width of the images at hand (default: 800 1280)')
    args = parser.parse_args(argv)
    if args.native < 64 or min(args.shape) < 64:
        parser.error('--native and --shape take at least 64 pixels')
    agreements = draw((args.native // 32, ) * 2, (args.shape[0] // 32, args.shape[1] // 32), args.out)
    print(f'{"bias":12}' + ''.join(f' {way:>9}' for way in WAYS))
    for name, agreement in agreements.items():
        print(f'{name:12}' + ''.join(f' {agreement[way]:9.3f}' for way in WAYS))
    print(args.out)


if __name__ == '__main__':
    main()
