"""A training's checkpoint -> what one shares: `python tools/publish.py work_dirs/x/epoch_12.pth --out DIR`.

Writes the weights without optimizer as `.safetensors`, whose header holds config, classes, metrics, versions and
licence, `config.py`, and a model card with the evaluations of the run; `--push OWNER/NAME` uploads them to a hub.
"""
import argparse
import sys
from pathlib import Path

from cmt_backbones.export.publishing import PARTS, PublishError, publish, push


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='of a training, in its work dir')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument('--name', help="the model's; its config's by default")
    parser.add_argument('--part', choices=PARTS, default='model', help='default: %(default)s')
    parser.add_argument('--licence', help='such as apache-2.0; by itself where the start binds it, as DINOv3 does')
    parser.add_argument('--push', metavar='OWNER/NAME', help='upload to this repository of a hub (HF_ENDPOINT)')
    parser.add_argument('--private', action='store_true', help='a repository that only you see')
    args = parser.parse_args(argv)
    try:
        published = publish(args.checkpoint, args.out, args.name, args.part, args.licence)
        print(f'{published.weights}: {published.weights.stat().st_size / 1e6:.1f} MB, {published.told["licence"]}')
        print(f'{published.card}: ' + (', '.join(f'{name} {value:.4g}' for name, value in
                                                 published.told['metrics'].items()) or 'no evaluation of its step'))
        if args.push:
            print(f'{push(args.out, args.push, args.private)}: uploaded')
    except (PublishError, OSError) as error:
        sys.exit(f'publish: {error}')


if __name__ == '__main__':
    main()
