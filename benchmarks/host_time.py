"""What recomputation costs the processor that starts kernels: `python benchmarks/host_time.py`.

A training step of CMT with the depths of CMT-S, and with widths and images so small that arithmetic hardly counts: what
is left is what Python and PyTorch take from one operation to the next, which bounds small batches on a GPU. Three ways
take turns in one process: stem and feed-forward as built, which keep few maps and compute the others again; the same
layers one after another, with all maps kept; and these with the feed-forward's four recomputed operations called once
more and left unused, below which no recomputation can come. Seconds are those of the processor, on one thread, which
others on the same machine disturb less than a clock. Writes a Markdown table: how many operators a step has, views left
out, and medians.
"""
import argparse
import statistics
import time
from contextlib import nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from gpu_simulated import Operators

from cmt_backbones import CMT
from cmt_backbones.models import cmt, kept_norm

ARCH = dict(stem_channels=4, embed_dims=(8, 8, 8, 8), depths=cmt.ARCHS['small']['depths'], mlp_ratio=1,
            pretrain_img_size=64)


def layer_by_layer(x, norm1, dwconv, norm2, project):
    return project(norm2(F.gelu(dwconv(norm1(F.gelu(x))))))


def all_kept(x, expand, *rest):
    """``between_products`` without recomputation."""
    return layer_by_layer(expand(x), *rest)


def called_twice(x, expand, norm1, dwconv, norm2, project):
    """The same, after what the backward pass of ``between_products`` cannot do without."""
    x = expand(x)
    with torch.no_grad():
        again = F.batch_norm(F.gelu(x), norm1.running_mean, norm1.running_var, norm1.weight, norm1.bias)
        weight, bias = dwconv.weights()
        F.gelu(F.conv2d(again, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=dwconv.groups))
    return layer_by_layer(x, norm1, dwconv, norm2, project)


def kept(feed_forward):
    """A context with this in the place of ``between_products``, and a stem that keeps all its maps."""
    return mock.patch.multiple(cmt, between_products=feed_forward), mock.patch.object(
        kept_norm, 'may_keep_less', lambda *args: False)


WAYS = {
    'all maps kept': lambda: kept(all_kept),
    'the same, four operations called twice': lambda: kept(called_twice),
    'as built': lambda: (nullcontext(), nullcontext()),
}


def step(model, x, amp):
    """Seconds of forward, of backward, and of both."""
    model.zero_grad()
    start = time.process_time()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        loss = sum(out.mean() for out in model(x))
    middle = time.process_time()
    loss.backward()
    end = time.process_time()
    return middle - start, end - middle, end - start


def measure(amp, args):
    """For each way the number of operators, and medians of forward, backward and both, and of the ratio to all maps
    kept in the same round."""
    torch.manual_seed(0)
    model, x = CMT(ARCH), torch.randn(2, 3, *args.shape)
    seconds, operators = {way: [] for way in WAYS}, {}
    for _ in range(args.rounds + 2):  # the first two to warm up
        for way, contexts in WAYS.items():
            one, other = contexts()
            with one, other:
                seconds[way].append(step(model, x, amp))
                if way not in operators:
                    with Operators() as seen:
                        step(model, x, amp)
                    operators[way] = len(seen.names)
    rows = {way: [(*parts, parts[-1] / plain[-1]) for parts, plain in zip(steps[2:], seconds['all maps kept'][2:])]
            for way, steps in seconds.items()}
    return {way: (operators[way], [statistics.median(column) for column in zip(*steps)]) for way, steps in rows.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', type=int, nargs=2, default=[32, 32], metavar=('H', 'W'))
    parser.add_argument('--rounds', type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print('| | step | operators | forward, ms | backward, ms | both, ms | of all maps kept |\n'
          '|---|---|---|---|---|---|---|')
    for amp in (True, False):
        for way, (operators, (*parts, ratio)) in measure(amp, args).items():
            print(f"| {'bfloat16 by AMP' if amp else 'float32'} | {way} | {operators} | "
                  f"{' | '.join(f'{1e3 * part:.1f}' for part in parts)} | {ratio:.3f} |", flush=True)


if __name__ == '__main__':
    main()
