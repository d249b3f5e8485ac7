"""How far maps under bfloat16 autocast are from those in float32, by stage: `python benchmarks/bf16_error.py`.

CMT-S and ConvNeXt-T in training, or with `--inference` as built and deployed with the statistics of these images, with
seeded weights and images, on the CPU. Writes a Markdown table. It uses nothing that earlier commits lack, so that a
copy of it measures them too.
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
    parser.add_argument('--inference', action='store_true')
    args = parser.parse_args()
    print('| | stage 1 | stage 2 | stage 3 | stage 4 |\n|---|---|---|---|---|')
    for name, build in (('CMT-S', lambda: CMT('small', drop_path_rate=0.)), ('ConvNeXt-T', lambda: ConvNeXt('tiny'))):
        torch.manual_seed(0)
        model, x = build().train(), torch.randn(2, 3, *args.shape)
        for way in ('as built', 'deployed') if args.inference else ('training', ):
            if args.inference:
                infer(model, x, way == 'deployed')
            with torch.set_grad_enabled(not args.inference):
                found = errors(model, x)
            print(f"| {name}, {way} | {' | '.join(f'{error:.2e}' for error in found)} |", flush=True)


@torch.no_grad()
def infer(model, x, deploy):
    """Puts a model in eval mode, with the statistics of x."""
    if deploy:
        model.switch_to_deploy()
        return
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None  # the average of all batches, of which there is one
    model(x)
    model.eval()


if __name__ == '__main__':
    main()
