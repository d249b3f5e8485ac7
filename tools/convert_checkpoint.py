"""Any published checkpoint in, the backbone's weights under our names out.

    python tools/convert_checkpoint.py cmt_small.pth ours.pth
    python tools/convert_checkpoint.py work_dirs/retinanet_cmt_s_1x/epoch_12.pth backbone.safetensors

Reads whatever `init_cfg` reads (official CMT, Facebook, timm and mmpretrain ConvNeXt, detectors and
segmentors of ours) and writes a plain state dict, which `init_cfg`, timm and torch.load read anywhere.
"""
import argparse
import sys
from collections import Counter
from pathlib import Path

from cmt_backbones.models.conversion import convert_file
from cmt_backbones.weights.writing import save


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', metavar='IN', help='file or URL')
    parser.add_argument('out', metavar='OUT', type=Path, help='.pth or .safetensors')
    parser.add_argument('--arch', help='what it must fill, such as small; found by itself if left out')
    parser.add_argument('--prefix', help='where the backbone begins, if the file holds several')
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.pth', '.safetensors'):
        parser.error(f'OUT must end in .pth or .safetensors, not {args.out}')
    try:
        found = convert_file(args.source, args.arch, args.prefix)
        save(found.weights, args.out)
    except (ValueError, OSError) as error:
        sys.exit(f'cannot convert {args.source}: {error}')
    parts = Counter(key.split('.')[0] + ('.' + key.split('.')[1] if key.startswith('stages') else '')
                    for key in found.weights)
    print(f'{args.source}: {found.layout.name}, {found.layout.family} {found.arch!r}')
    for part, count in parts.items():
        print(f'  {part:20} {count:5} tensors')
    notes = ''.join(f'; {note}' for note in found.notes)
    print(f'{args.out}: {len(found.weights)} of {found.in_file} tensors{notes}')
    if found.left_out > 0:
        print(f'  left out, which no backbone holds (heads, necks): {found.left_out}')


if __name__ == '__main__':
    main()
