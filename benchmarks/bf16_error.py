"""How far maps under bfloat16 autocast are from those in float32, by stage: `python benchmarks/bf16_error.py`.

CMT-S and ConvNeXt-T in training, with seeded weights and images, on the CPU. Writes a Markdown table. It uses nothing
that earlier commits lack, so that a copy of it measures them too.
"""
import argparse

import torch

from cmt_backbones import CMT, ConvNeXt


def errors(model, x):
    """Of the map of each stage, the norm of the difference relative to that of the map."""
    exact = [out.detach() for out in model(x)]
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(x)
    return [((out.float() - want).norm() / want.norm()).item() for out, want in zip(outs, exact)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', type=int, nargs=2, default=[224, 320], metavar=('H', 'W'))
    args = parser.parse_args()
    print('| | stage 1 | stage 2 | stage 3 | stage 4 |\n|---|---|---|---|---|')
    for name, build in (('CMT-S', lambda: CMT('small', drop_path_rate=0.)), ('ConvNeXt-T', lambda: ConvNeXt('tiny'))):
        torch.manual_seed(0)
        model = build().train()
        found = errors(model, torch.randn(2, 3, *args.shape))
        print(f"| {name} | {' | '.join(f'{error:.2e}' for error in found)} |", flush=True)


if __name__ == '__main__':
    main()
