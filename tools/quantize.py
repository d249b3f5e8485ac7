"""Brings an exported file to int8: `python tools/quantize.py FILE.onnx --images FOLDER --out INT8.onnx`.

The parts of the network that lose most are left in float, by measurement on the images. How much AP is lost says
tools/test_exported.py with the new file.
"""
import argparse
import sys
from pathlib import Path

from cmt_backbones.export import ExportError
from cmt_backbones.export.quantization import quantise, seconds_of

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('file', type=Path, help='.onnx, of tools/export_onnx.py, with float32 weights')
    parser.add_argument('--images', type=Path, required=True, metavar='FOLDER', help='photos like those it will see')
    parser.add_argument('--count', type=int, default=32, metavar='N', help='how many are used (default: %(default)s)')
    parser.add_argument('--tolerance', type=float, default=.1,
                        help="how much the heads' outputs may change, relative to their norm (default: %(default)s)")
    parser.add_argument('--out', type=Path, required=True, metavar='FILE')
    args = parser.parse_args(argv)
    found = sorted(path for path in args.images.glob('*') if path.suffix.lower() in SUFFIXES)
    if not found:
        sys.exit(f'quantize: there are no images in {args.images}: give a folder with {", ".join(SUFFIXES)}')
    step = max(len(found) // args.count, 1)  # from the whole folder
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        done = quantise(args.file, args.out, found[::step][:args.count], args.tolerance,
                        say=lambda text: print(text, flush=True))
    except (ExportError, OSError) as error:
        sys.exit(f'quantize: {error}')
    sizes = [path.stat().st_size / 1e6 for path in (args.file, args.out)]
    print(f'{args.out}: {done.layers} of {done.total} layers in int8, {sizes[1]:.1f} MB instead of {sizes[0]:.1f}; '
          f'the outputs of the heads change by {done.error:.3f}; in float: {", ".join(done.kept) or "none"}')
    (before, _), (after, _) = seconds_of([args.file, args.out], found[0])
    print(f'a photo takes {after * 1e3:.0f} ms instead of {before * 1e3:.0f}, {after / before:.2f} times as long')


if __name__ == '__main__':
    main()
