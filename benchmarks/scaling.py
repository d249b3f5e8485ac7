"""FLOPs of compound scaling beside the paper's variants, a table: `python benchmarks/scaling.py`."""
import torch

from cmt_backbones.analysis.flops import count
from cmt_backbones.classifier import CMTClassifier
from cmt_backbones.models.cmt import ARCHS
from cmt_backbones.models.scaling import scaled_arch

PAPER = {'tiny': (-2, 'CMT-Ti'), 'xsmall': (-1, 'CMT-XS'), 'small': (0, 'CMT-S'), 'base': (1, 'CMT-B')}


def row(name, phi, arch):
    with torch.device('meta'):
        model = CMTClassifier(arch).eval()
    cost = count(model, (arch['pretrain_img_size'], ) * 2)
    return [name, phi, '/'.join(map(str, arch['depths'])), arch['embed_dims'][0], arch['mlp_ratio'],
            arch['pretrain_img_size'], cost['params_m'], cost['gmacs']]


rows = [row(name, phi, ARCHS[arch]) for arch, (phi, name) in PAPER.items()]
rows += [row('', phi, scaled_arch(phi)) for phi in (-3, -2, -1.5, -1, -.5, 0, .5, 1, 1.5, 2, 3)]
small = rows[2][-1]
print('| | phi | depths | width | R | size | params M | GMAC | of CMT-S | of 2.5^phi |\n' + '|---' * 10 + '|')
for *start, params, gmacs in rows:
    ratio = gmacs / small
    print('| ' + ' | '.join(map(str, start))
          + f' | {params:.2f} | {gmacs:.2f} | {ratio:.3f} | {ratio / 2.5**start[1]:.2f} |')
