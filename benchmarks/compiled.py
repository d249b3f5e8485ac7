"""Compiled backbones beside eager ones, by PyTorch's own code generator: `python benchmarks/compiled.py`.

For inference and for training, at three sizes: the largest relative difference of the maps and of the gradients,
the number of graphs, seconds to compile the first, and how many times as fast as eager. Writes a Markdown table.
"""
import argparse
import copy
import statistics
import time

import torch
from torch._dynamo.utils import counters
from tqdm import tqdm

from cmt_backbones import CMT, ConvNeXt
from cmt_backbones.models import cmt, convnext

# Whole backbones take minutes a graph; one block a stage has every operation of theirs.
SMALL = {
    'CMT': lambda: CMT(dict(cmt.ARCHS['small'], depths=(1, 1, 1, 1)), drop_path_rate=0.),
    'ConvNeXt': lambda: ConvNeXt(dict(convnext.ARCHS['tiny'], depths=(1, 1, 1, 1))),
}
WHOLE = {'CMT': lambda: CMT('small', drop_path_rate=0.), 'ConvNeXt': lambda: ConvNeXt('tiny')}
SIZES = [(256, 320), (192, 480), (416, 384)]


def step(model, x, train):
    """The maps, and to train, gradients of their mean squares."""
    with torch.set_grad_enabled(train):
        outs = model(x)
    if train:
        model.zero_grad()
        sum(out.square().mean() for out in outs).backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return outs


def seconds(model, x, train):
    start = time.perf_counter()
    step(model, x, train)
    return time.perf_counter() - start


def difference(a, b, floor=0.):
    return ((a - b).norm() / (b.norm() + floor)).item()


def compare(name, build, train, args):
    """A row of the table."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = build().train(train).to(args.device)
    eager = copy.deepcopy(model)
    model.compile(dynamic=True, fullgraph=True)
    maps, gradients, ratios = [], [], []
    images = [torch.randn(2, 3, *size, device=args.device) for size in SIZES]
    compiling = seconds(model, images[0], train)
    for x in images:
        maps += [difference(*pair) for pair in zip(step(model, x, train), step(eager, x, train))]
        if train:
            whole = torch.cat([p.grad.flatten() for p in eager.parameters()]).norm()
            gradients += [difference(p.grad, q.grad, .05 * whole)
                          for p, q in zip(model.parameters(), eager.parameters())]
        times = [[seconds(form, x, train) for form in (eager, model)] for _ in range(args.repeats)]
        ratios.append(statistics.median(a for a, _ in times) / statistics.median(b for _, b in times))
    return (name, 'training step' if train else 'inference', f'{max(maps):.0e}',
            f'{max(gradients):.0e}' if train else '', str(counters['stats']['unique_graphs']), f'{compiling:.0f}',
            ', '.join(f'{ratio:.2f}' for ratio in ratios))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--whole', action='store_true', help='CMT-S and ConvNeXt-T instead of one block a stage')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    models = WHOLE if args.whole else SMALL
    rows = [compare(name, build, train, args)
            for name, build in tqdm(models.items()) for train in (False, True)]
    sizes = ', '.join('{}x{}'.format(*size) for size in SIZES)
    print(f'2 images of {sizes}, float32, {args.device}, {torch.get_num_threads()} threads, torch '
          f'{torch.__version__}\n\n'
          '| | work | maps | gradients | graphs | seconds to compile | times as fast as eager |\n'
          '|---|---|---|---|---|---|---|')
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == '__main__':
    main()
