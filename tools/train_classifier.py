"""Trains a classifier: `torchrun --nproc-per-node 8 tools/train_classifier.py DATA OUT --preset small`.

    torchrun --nproc-per-node 8 tools/train_classifier.py data/imagenet work_dirs/cmt_s --preset small --amp
    python tools/train_classifier.py data/pets work_dirs/pets --dataset pets --preset finetune --arch small \\
        --pretrained cmt_small.pth
    python tools/train_classifier.py data/cifar work_dirs/resnet18 --preset plain --model resnet18

DATA has a folder for each class in DATA/train and in DATA/val. The presets are told in
cmt_backbones/training/recipes.py; every setting of one is also an option. OUT/best.pth and OUT/last.pth of CMT go
into the `init_cfg` of a detector unchanged, those of a model of timm into that of a backbone which has its names;
OUT/log.jsonl has a line for each epoch. A call with the same OUT and --resume goes on after the last complete epoch,
and draws the random numbers that it would have drawn.
"""
import argparse
import json
import sys
from pathlib import Path

from timm.utils import ParseKwargs

from cmt_backbones.data.classification import TRANSFER_SETS, ClassificationError
from cmt_backbones.models.cmt import ARCHS
from cmt_backbones.training.classification import train
from cmt_backbones.training.evaluation import processes
from cmt_backbones.training.recipes import PRESETS, RECIPE, settings


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--preset', choices=PRESETS, default='small')
    parser.add_argument('--dataset', choices=['folder', *TRANSFER_SETS], default='folder')
    parser.add_argument('--pretrained', metavar='FILE', help='start from these weights')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
                        help="options of timm's --model, such as embed_dim=48")
    parser.add_argument('--phi', type=float, help='an arch of scaled_arch(PHI) instead of --arch')
    parser.add_argument('--resume', action='store_true', help='go on from OUT/last.pth')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--with-cp', action='store_true', help='recompute blocks, for memory')
    parser.add_argument('--workers', type=int, default=4, help='of each process')
    parser.add_argument('--seed', type=int, default=0)
    recipe = parser.add_argument_group('settings of the preset')
    for name, value in RECIPE.items():
        recipe.add_argument(f'--{name.replace("_", "-")}', type=type(value), default=argparse.SUPPRESS,
                            choices=ARCHS if name == 'arch' else None)
    given = parser.parse_args(argv)
    try:
        args = settings(**vars(given))
    except ValueError as error:
        parser.error(str(error))
    if (args.out / 'last.pth').exists() and not args.resume:
        parser.error(f'{args.out} holds a training: --resume it, or name another folder')
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        with processes() as process:
            train(args, process, report=lambda line: print(json.dumps(line), flush=True))
    except ClassificationError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
