"""Any published checkpoint in, the backbone's weights under our names out.

    python tools/convert_checkpoint.py cmt_small.pth ours.pth
    python tools/convert_checkpoint.py work_dirs/retinanet_cmt_s_1x/epoch_12.pth backbone.safetensors

Reads whatever `init_cfg` reads (official CMT, Facebook, timm and mmpretrain ConvNeXt, detectors and
segmentors of ours) and writes a plain state dict, which `init_cfg`, timm and torch.load read anywhere.
"""
import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

import cmt_backbones
from cmt_backbones.models import cmt, convnext
from cmt_backbones.weights import convert, fit, read_checkpoint

ARCHS = dict(CMT=cmt.ARCHS, ConvNeXt=convnext.ARCHS)


def fitted(state, layout, archs):
    """The arch, of some, that the weights fill, with them; ValueError if there is none."""
    for arch in archs:
        with torch.device('meta'):
            wanted = getattr(cmt_backbones, layout.family)(arch).state_dict()
        # Output norms that the file lacks would come from here, where there are none.
        wanted = {k: v for k, v in wanted.items() if k in state or not k.startswith('norm')}
        try:
            weights, notes = fit(state, wanted, layout)
            return arch, weights, notes
        except ValueError:
            if len(archs) == 1:
                raise
    raise ValueError(f'it looks like {layout.name}, and fills none of {sorted(archs)}; --arch tells what '
                     'differs from one of them')


def save(weights, out: Path):
    part = out.with_name(f'.{out.stem}.part{out.suffix}')  # complete or absent
    weights = {k: v.contiguous() for k, v in weights.items()}
    save_file(weights, part) if out.suffix == '.safetensors' else torch.save(weights, part)
    os.replace(part, out)


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
        source = read_checkpoint(args.source)
        state, layout = convert(source, args.prefix)
        archs = [args.arch] if args.arch else ARCHS[layout.family]
        if args.arch not in (None, *ARCHS[layout.family]):
            raise ValueError(f'--arch must be one of {sorted(ARCHS[layout.family])}, not {args.arch!r}')
        arch, weights, notes = fitted(state, layout, archs)
        save(weights, args.out)
    except (ValueError, OSError) as error:
        sys.exit(f'cannot convert {args.source}: {error}')
    parts = Counter(key.split('.')[0] + ('.' + key.split('.')[1] if key.startswith('stages') else '')
                    for key in weights)
    print(f'{args.source}: {layout.name}, {layout.family} {arch!r}')
    for part, count in parts.items():
        print(f'  {part:20} {count:5} tensors')
    left = len(source) - sum(k in weights for k in state)
    print(f'{args.out}: {len(weights)} of {len(source)} tensors' + ''.join(f'; {n}' for n in notes))
    if left > 0:
        print(f'  left out, which no backbone holds (heads, necks): {left}')


if __name__ == '__main__':
    main()
