"""Attention with the position bias, by every way there is: `python benchmarks/attention_kernels.py --shape 800 1280`.

One block's attention in each stage of CMT-S: with the whole bias as a mask (and what making it takes, once a
stage), on wider heads without a mask, and, on CPUs, by two products a few queries at a time. On a GPU, each
of PyTorch's kernels that accepts it, forward and, with --train, backward. Writes a Markdown table.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from cmt_backbones.models.attention import Flash, NarrowValues, Queries, WiderHeads
from cmt_backbones.models.cmt import ARCHS, NUM_HEADS, REDUCTIONS, STRIDES
from cmt_backbones.models.relative_bias import RelativeBias


def ways(bias, q, k, v, train):
    """Callables by name, all of which compute the same (N, heads, n, d)."""
    factors, d = bias.factors, q.shape[3]
    with torch.no_grad():
        mask = (factors.query @ factors.key.T)[None].to(q.dtype)
    kernels = ({'flash': SDPBackend.FLASH_ATTENTION, 'efficient': SDPBackend.EFFICIENT_ATTENTION,
                'cuDNN': SDPBackend.CUDNN_ATTENTION} if q.is_cuda else {'fused': SDPBackend.FLASH_ATTENTION})

    def by(kernel, function):
        def run():
            with sdpa_kernel([kernel]):
                return function()
        return run

    def masked():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def of(kind):
        prepared = kind.of(factors, d, q.dtype)  # once a stage
        return lambda: prepared.attend(q, k, v)

    out = {}
    for name, kernel in kernels.items():
        out[f'mask, {name}'] = by(kernel, masked)
        out[f'wider heads, {name}'] = by(kernel, of(WiderHeads))
        if q.is_cuda:
            out[f'wider heads, narrow v, {name}'] = by(kernel, of(NarrowValues))
    out['making the mask'] = lambda: (factors.query @ factors.key.T)[None].to(q.dtype)
    out['wider heads, little kept'] = of(Flash)
    if not q.is_cuda and q.dtype == torch.float32:
        out['by queries'] = of(Queries)
    return out


class Factors:
    """The factors of a stage, and its table, on the grid at hand."""

    def __init__(self, stage, shape, device):
        grid = ARCHS['small']['pretrain_img_size'] // STRIDES[stage]
        reduction = REDUCTIONS[stage]
        queries = tuple(side // STRIDES[stage] for side in shape)
        keys = tuple(side // reduction for side in queries)
        self.n, self.m = queries[0] * queries[1], keys[0] * keys[1]
        table = RelativeBias(NUM_HEADS[stage], (grid, ) * 2, (grid // reduction, ) * 2).to(device)
        with torch.no_grad():
            self.factors = table.factors(queries, keys)


def seconds(run, inputs, train, device):
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.set_grad_enabled(train):
        out = run()
    if train:
        torch.autograd.grad(out.float().square().mean(), inputs)
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1280], metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--train', action='store_true', help='forward and backward')
    parser.add_argument('--repeats', type=int, default=9)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    rows = {}
    for stage in tqdm(range(4), desc='stages'):
        bias = Factors(stage, args.shape, device)
        heads, d = NUM_HEADS[stage], ARCHS['small']['embed_dims'][stage] // NUM_HEADS[stage]
        inputs = [torch.randn(args.batch, length, heads, d, device=device, dtype=dtype).transpose(1, 2)
                  .requires_grad_(args.train) for length in (bias.n, bias.m, bias.m)]
        runs = {}
        for name, run in ways(bias, *inputs, args.train).items():
            if name == 'making the mask' and args.train:
                continue
            try:
                seconds(run, inputs, args.train, device)
            except RuntimeError as error:
                if 'No available kernel' not in str(error):
                    raise
                rows.setdefault(name, {})[stage] = 'not accepted'
            else:
                runs[name] = run
        times = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():
                times[name].append(seconds(run, inputs, args.train, device))
        for name, taken in times.items():
            rows.setdefault(name, {})[stage] = f'{statistics.median(taken) * 1e3:.3g}'
    print(f'{"Forward and backward" if args.train else "Forward"} of {args.batch}x{args.shape[0]}x{args.shape[1]}, '
          f'{args.dtype}, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, median of '
          f'{args.repeats}, milliseconds\n\n| | stage 1 | 2 | 3 | 4 |\n|---|---|---|---|---|')
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row[stage] for stage in range(4))} |")


if __name__ == '__main__':
    main()
