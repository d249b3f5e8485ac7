"""A report for whoever has a GPU: is all correct there, how fast, how much memory; as one Markdown page.

Each part is a command of its own in a process of its own, with an end to its time; one that fails or takes too
long is noted in the page, and the others go on.
"""
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

# Published by mmdet for 2 images a GPU, in GB; to compare with the last part.
PUBLISHED = 'RetinaNet PVT-S 14.5, Mask R-CNN Swin-T 7.6, Mask R-CNN ConvNeXt-T with AMP 7.3'


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        title: Its heading.
        command: Arguments of Python, from the root of the checkout.
        minutes: After so many it is ended.
        cards: How many GPUs it needs.
        env: What is added to the environment.
    """
    title: str
    command: Sequence[str]
    minutes: float
    cards: int = 1
    env: Dict[str, str] = field(default_factory=dict)


def parts(folder: Path) -> List[Part]:
    """All parts, in the order in which they are worth having; together at most 20 minutes."""
    speed = ['tools/benchmark.py', '--repeats', '5', '--device', 'cuda']
    module = ['-m', 'cmt_backbones.analysis.gpu_report']
    demo = ['tools/train.py', 'configs/mmdet/retinanet_cmt_ti_shapes.py', '--amp', 'bf16', '--work-dir',
            str(folder / 'demo'), '--cfg-options', 'train_cfg.max_epochs=1']
    return [
        Part('Correctness', [*module, 'correctness'], 3),
        Part('Inference, bfloat16', [*speed, 'cmt-s:plain', 'cmt-s', 'cmt-s:deployed', 'convnext-t',
                                     '--dtype', 'bfloat16', '--out', str(folder / 'inference_bf16')], 2),
        Part('Inference, float32, 8 images', [*speed, 'cmt-s:plain', 'cmt-s', 'convnext-t', '--batch', '8',
                                              '--out', str(folder / 'inference_fp32')], 2),
        Part('Forward and backward, AMP, 2 images', [
            *speed, 'cmt-s:plain', 'cmt-s', 'cmt-s:with-cp', 'convnext-t', '--batch', '2', '--train',
            '--dtype', 'bfloat16', '--out', str(folder / 'training_bf16')], 2),
        Part('Forward and backward, float32, 2 images', [
            *speed, 'cmt-s:plain', 'cmt-s', 'convnext-t', '--batch', '2', '--train',
            '--out', str(folder / 'training_fp32')], 2),
        Part('Attention by each way and kernel, milliseconds', [
            'benchmarks/attention_kernels.py', '--batch', '2', '--dtype', 'bfloat16', '--train'], 1.5),
        Part('Depthwise 7x7 by layout, milliseconds', [*module, 'depthwise'], 1),
        Part(f'Peak memory of a training step, 2 images of 800x1344, GB (mmdet published: {PUBLISHED})',
             [*module, 'memory'], 2),
        Part('The demo, trained in mixed precision', demo, 3),
        Part('The demo on two GPUs by NCCL', ['-m', 'torch.distributed.run', '--nproc-per-node', '2', *demo,
                                              '--launcher', 'pytorch'], 1.5, cards=2),
    ]


def report(folder: Path, chosen: Sequence[Part] = ()) -> Path:
    """Runs the parts and writes ``gpu_report.md`` into a folder, anew after each part.

    Returns:
        Path: Of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, cards = folder / 'gpu_report.md', torch.cuda.device_count()
    lines = ['# On a GPU', '', ', '.join(machine()), '']
    for part in chosen or parts(folder):
        lines += [f'## {part.title}', '', f"`python {' '.join(part.command)}`", '']
        start = time.monotonic()
        said = run(part) if cards >= part.cards else f'left out: it needs {part.cards} GPU(s), and there are {cards}'
        lines += [said, '', f'{time.monotonic() - start:.0f} s', '']
        page.write_text('\n'.join(lines), encoding='utf-8')
        print(f'{part.title}: {time.monotonic() - start:.0f} s', flush=True)
    lines += [f'![{plot.stem}]({plot.name})' for plot in sorted(folder.glob('*.png'))]
    page.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return page


def run(part: Part) -> str:
    """What a part printed, or how it failed."""
    try:
        done = subprocess.run([sys.executable, *part.command], env={**os.environ, **part.env}, text=True,
                              capture_output=True, timeout=60 * part.minutes)
    except subprocess.TimeoutExpired:
        return f'**failed**: not done after {part.minutes:g} minutes'
    last = '\n'.join(done.stdout.strip().splitlines()[-60:])
    if done.returncode:
        return f'**failed** with code {done.returncode}\n\n```\n{last}\n{done.stderr.strip()[-2000:]}\n```'
    return last if last.startswith(('|', '`')) or '\n|' in last else f'```\n{last}\n```'


def machine() -> List[str]:
    facts = [f'torch {torch.__version__}', f'Python {platform.python_version()}']
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        facts.append(f'{card.name} (sm_{card.major}{card.minor}, {card.total_memory / 1e9:.0f} GB)')
    return facts if torch.cuda.is_available() else [*facts, 'no GPU']


def device_at_hand() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def correctness(arch: str = 'small', shape: Sequence[int] = (2, 3, 224, 288)) -> None:
    """Maps and gradients of both backbones on the GPU against the same in double precision on the CPU."""
    from ..models.cmt import CMT
    from ..models.convnext import ConvNeXt
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    device = device_at_hand()
    print('| backbone | precision | maps | gradients |\n|---|---|---|---|')
    for family, name in ((CMT, arch), (ConvNeXt, 'tiny')):
        torch.manual_seed(0)
        model = family(name, drop_path_rate=0.).train()
        x, state = torch.randn(*shape), model.state_dict()
        expected = step(model.double(), x.double(), None)
        for amp, fixed in ((None, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)):
            torch.backends.cudnn.benchmark = fixed
            model = family(name, drop_path_rate=0.).train().to(device)
            model.load_state_dict(state)
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


def depthwise(shape: Sequence[int] = (2, 96, 200, 336), repeats: int = 20) -> None:
    """Forward and backward of ConvNeXt-T's first depthwise convolution in either layout."""
    from .speed import timed
    device = device_at_hand()
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


def memory(configs: Sequence[str] = ('retinanet_cmt_s_1x', 'retinanet_convnext_t_1x', 'mask_rcnn_cmt_s_1x',
                                     'mask_rcnn_convnext_t_1x'), shape: Sequence[int] = (800, 1344)) -> None:
    """Peak memory of a training step of our detectors, in float32 and by AMP."""
    from .named_models import build, images, work
    device = device_at_hand()
    print('| config | float32 | bfloat16 |\n|---|---|---|')
    for name in configs:
        path, row = f'configs/mmdet/{name}.py', []
        for amp in (False, True):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            model = build(path).to(device)
            run_once = work(model, images(path, 2, tuple(shape), device, torch.float32), True)
            with torch.autocast('cuda', torch.bfloat16, enabled=amp):
                run_once()
            row.append(f'{torch.cuda.max_memory_allocated() / 1e9:.2f}')
            del model, run_once
        print(f"| {name} | {' | '.join(row)} |")


PARTS: Dict[str, Callable[[], None]] = dict(correctness=correctness, depthwise=depthwise, memory=memory)

if __name__ == '__main__':
    PARTS[sys.argv[1]]()
