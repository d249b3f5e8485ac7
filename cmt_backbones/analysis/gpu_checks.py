"""What the report of a GPU measures by itself: `python -m cmt_backbones.analysis.gpu_checks correctness`.

Each prints a table in Markdown. Without a GPU they run on the CPU, where `--small` makes that short.
"""
import argparse
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..models.cmt import CMT
from ..models.convnext import ConvNeXt
from ..openmmlab.options import tf32
from .named_models import build, images, work
from .speed import start_of_peak, timed

SMALL_CMT = dict(stem_channels=8, embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), mlp_ratio=2, pretrain_img_size=64)
SMALL_CONVNEXT = dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), use_grn=False)
CONFIGS = 'retinanet_cmt_s_1x', 'retinanet_convnext_t_1x', 'mask_rcnn_cmt_s_1x', 'mask_rcnn_convnext_t_1x'


def correctness(device: torch.device, archs: Sequence[Union[str, dict]] = ('small', 'tiny'),
                shape: Sequence[int] = (2, 3, 224, 288)) -> None:
    """Maps and gradients of both backbones against the same in double precision on the CPU."""
    print('| backbone | precision | maps | gradients |\n|---|---|---|---|')
    for family, arch in zip((CMT, ConvNeXt), archs):
        torch.manual_seed(0)
        model = family(arch, drop_path_rate=0.).train()
        x, state = torch.randn(*shape), {name: value.clone() for name, value in model.state_dict().items()}
        expected = step(model.double(), x.double(), None)
        for amp, fixed in ((None, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)):
            torch.backends.cudnn.benchmark = fixed
            model = family(arch, drop_path_rate=0.).train().to(device)
            model.load_state_dict(state)
            with tf32(False):
                outs, grads = step(model, x.to(device), amp)
            what = f"{'AMP ' + str(amp)[6:] if amp else 'float32'}{', sizes fixed' if fixed else ''}"
            print(f'| {family.__name__} | {what} | {worst(outs, expected[0]):.0e} | '
                  f'{whole_error(grads, expected[1]):.0e} |')


def step(model: nn.Module, x: Tensor, amp: Optional[torch.dtype]) -> Tuple[List[Tensor], List[Tensor]]:
    """Maps and gradients of all parameters, in double precision on the CPU."""
    with torch.autocast(x.device.type, amp or torch.bfloat16, enabled=amp is not None):
        outs = model(x)
    sum(out.double().square().mean() for out in outs).backward()
    return [out.detach().double().cpu() for out in outs], [p.grad.double().cpu() for p in model.parameters()]


def worst(outs: List[Tensor], expected: List[Tensor]) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(outs, expected))


def whole_error(grads: List[Tensor], expected: List[Tensor]) -> float:
    a, b = (torch.cat([x.flatten() for x in some]) for some in (grads, expected))
    return ((a - b).norm() / b.norm()).item()


def depthwise(device: torch.device, shape: Sequence[int] = (2, 96, 200, 336), repeats: int = 20) -> None:
    """Forward and backward of ConvNeXt-T's first depthwise convolution in either layout."""
    torch.backends.cudnn.benchmark = True
    print('| dtype | channels-last | contiguous |\n|---|---|---|')
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        row = []
        for layout in (torch.channels_last, torch.contiguous_format):
            conv = nn.Conv2d(shape[1], shape[1], 7, padding=3, groups=shape[1]).to(device, dtype)
            conv = conv.to(memory_format=layout)
            x = torch.randn(*shape, device=device, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
            taken = sorted(timed(lambda: conv(x).sum().backward(), device) for _ in range(repeats))  # noqa: B023
            row.append(f'{1e3 * taken[len(taken) // 2]:.2f}')
        print(f"| {str(dtype)[6:]} | {' | '.join(row)} |")


def memory(device: torch.device, configs: Sequence[str] = CONFIGS, shape: Tuple[int, int] = (800, 1344)) -> None:
    """Peak memory of a training step of our detectors, in float32 and by AMP: weights, gradients, AdamW's averages
    and all that is in between."""
    print('| config | float32 | bfloat16 |\n|---|---|---|')
    for name in configs:
        path, row = f'configs/mmdet/{name}.py', []
        for amp in (False, True):
            start, peak = start_of_peak(device)
            model = build(path).to(device)
            run_once = work(model, images(path, 2, shape, device, torch.float32), True)
            optimizer = torch.optim.AdamW(model.parameters())
            for _ in range(2):  # the averages are there from the second step on
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    run_once()
                optimizer.step()
            row.append(f'{peak() - start:.2f}')
            del model, run_once, optimizer
        print(f"| {name} | {' | '.join(row)} |")


CHECKS: Dict[str, Callable[..., None]] = dict(correctness=correctness, depthwise=depthwise, memory=memory)
SMALL = dict(correctness=dict(archs=(SMALL_CMT, SMALL_CONVNEXT), shape=(2, 3, 64, 96)),
             depthwise=dict(shape=(2, 8, 16, 24), repeats=1),
             memory=dict(configs=('retinanet_cmt_ti_1x', ), shape=(64, 96)))


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('check', choices=CHECKS)
    parser.add_argument('--small', action='store_true', help='tiny models and images')
    args = parser.parse_args(argv)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    CHECKS[args.check](device, **(SMALL[args.check] if args.small else {}))


if __name__ == '__main__':
    main()
