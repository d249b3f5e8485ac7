"""Parameters and multiply-adds of the model of a config: `python tools/get_flops.py CONFIG --shape 800 1280`.

What is counted is told in cmt_backbones/analysis/flops.py.
"""
import argparse
import json

from cmt_backbones.analysis.flops import count, model_without_memory
from cmt_backbones.openmmlab import config_from_file


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('--shape', type=int, nargs='+', default=[800, 1280], metavar='PIXELS',
                        help='height and width, or the side of a square (default: 800 1280)')
    parser.add_argument('--backbone', action='store_true', help='count the backbone alone')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args(argv)
    if len(args.shape) > 2 or min(args.shape) < 32:
        parser.error(f'--shape takes a height and a width of at least 32, not {args.shape}')
    shape = tuple(args.shape * 2)[:2]

    model = model_without_memory(config_from_file(args.config))
    result = count(model.backbone if args.backbone else model, shape)
    if args.json:
        print(json.dumps(dict(config=args.config, height=shape[0], width=shape[1], **result)))
    else:
        print(f'{args.config} at {shape[0]}x{shape[1]}')
        for name, value in result.items():
            print(f'  {name:34} {value:10.2f}')


if __name__ == '__main__':
    main()
