"""Draws scenes worth learning: `python tools/make_shapes.py OUT --images 600 --seed 0`.

What is in them, and how OUT is laid out, is told in cmt_backbones/data/shapes.py.
"""
import argparse
import sys
from pathlib import Path

from cmt_backbones.data.shapes import ShapesError, make_shapes


def size(text):
    """An argument type: WIDTHxHEIGHT, in pixels."""
    try:
        width, height = map(int, text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not WIDTHxHEIGHT, such as 256x192') from None
    if min(width, height) < 64:
        raise argparse.ArgumentTypeError(f'{text} leaves no room for objects: 64 pixels at least')
    return width, height


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--images', type=int, required=True, help='of the training set')
    parser.add_argument('--val', type=int, help='images held out (default: a fifth of these)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--size', type=size, nargs='+', default=[(256, 192)], metavar='WxH')
    args = parser.parse_args(argv)
    val = max(1, args.images // 5) if args.val is None else args.val
    if args.images < 1 or val < 1 or args.seed < 0:
        parser.error('--images and --val take at least 1, --seed at least 0')
    try:
        written = make_shapes(args.out.resolve(), args.images, val, args.seed, args.size)
    except (ShapesError, OSError) as error:
        sys.exit(f'make_shapes: {error}')
    print(f'{args.out}: {args.images} + {val} scenes' + (' were there already' * (not written)))


if __name__ == '__main__':
    main()
