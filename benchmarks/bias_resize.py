"""A classifier at sizes it was not trained at, by each resize of its position bias: a table and a figure.

    python benchmarks/bias_resize.py DATA CHECKPOINT --sizes 64 96 128 96x160 --out benchmarks/bias_resize.png
"""
import argparse
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch

from cmt_backbones.data.classification import eval_loader, eval_transform, open_set
from cmt_backbones.models.relative_bias import RelativeBias
from cmt_backbones.training.evaluation import evaluate, read_classifier

WAYS = ('geometric', 'flat', 'none')


def accuracy(args, way, size):
    """Top-1 in percent; ``'none'`` leaves the bias out, to see what there is to lose."""
    model = read_classifier(args.checkpoint, 'geometric' if way == 'none' else way)
    for module in model.modules():
        if way == 'none' and isinstance(module, RelativeBias):
            torch.nn.init.zeros_(module.table)
    data = open_set('folder', args.data, False, eval_transform(size, 1., squash=True))
    return evaluate(model, eval_loader(data, 64, 0, 0, args.every), torch.device('cpu'))['top1']


def pair(text):
    sides = [int(side) for side in text.split('x')]
    return tuple(sides * 2)[:2]


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('data', type=Path)
parser.add_argument('checkpoint')
parser.add_argument('--sizes', type=pair, nargs='+', default=[(64, 64), (96, 96), (128, 128), (96, 160)],
                    metavar='SIDE or HEIGHTxWIDTH')
parser.add_argument('--every', type=int, default=1, metavar='N', help='look at every Nth image only')
parser.add_argument('--out', type=Path, required=True)
args = parser.parse_args()

table = {way: [accuracy(args, way, size) for size in args.sizes] for way in WAYS}
names = [f'{h}x{w}' for h, w in args.sizes]
print('| top-1 at | ' + ' | '.join(names) + ' |\n' + '|---' * (len(names) + 1) + '|')
for way, values in table.items():
    print(f'| {way} | ' + ' | '.join(f'{v:.1f}' for v in values) + ' |')

figure, axis = plt.subplots(figsize=(6, 3.4), layout='constrained')
for i, (way, values) in enumerate(table.items()):
    bars = axis.bar([x + 0.27 * (i - 1) for x in range(len(names))], values, 0.25, label=f'bias: {way}')
    axis.bar_label(bars, fmt='%.0f', fontsize='small')
axis.set(xticks=range(len(names)), xticklabels=names, ylim=(0, 105), ylabel='top-1, %',
         title=f'trained at {names[0]}')
axis.legend(loc='lower left', fontsize='small')
figure.savefig(args.out, dpi=110)
