"""A report for whoever has a GPU: is all correct there, how fast, how much memory; as one Markdown page.

Each part is a command of its own in processes of its own, with an end to its time; one that fails or takes too
long is noted in the page, and the others go on.
"""
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional, Sequence

import torch

# Published by mmdet for 2 images a GPU, in GB; to compare with the last part.
PUBLISHED = 'RetinaNet PVT-S 14.5, Mask R-CNN Swin-T 7.6, Mask R-CNN ConvNeXt-T with AMP 7.3'
GRACE = 15  # seconds that a part whose time is over has to end its own processes
DEMO = 'configs/mmdet/retinanet_cmt_ti_shapes.py'


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Attributes:
        title: Its heading.
        command: Arguments of Python, from the root of the checkout.
        minutes: After so many it is ended.
        cards: How many GPUs it needs.
    """
    title: str
    command: Sequence[str]
    minutes: float
    cards: int = 1


def parts(folder: Path, rehearsal: bool = False) -> List[Part]:
    """All parts, in the order in which they are worth having; on a GPU together at most 20 minutes.

    Args:
        folder (Path): Where plots, drawn scenes and runs go.
        rehearsal (bool): The same commands for a CPU, with small models and images, to see whether they run.
    """
    cmt, device = ('cmt-ti', 'cpu') if rehearsal else ('cmt-s', 'cuda')
    speed = ['tools/benchmark.py', '--device', device, *(
        ['--repeats', '1', '--shapes', '64x96', '--threads', '1', '--no-memory'] if rehearsal else ['--repeats', '5'])]
    checks = ['-m', 'cmt_backbones.analysis.gpu_checks', *['--small'] * rehearsal]
    kernels = ['--shape', '64', '96', '--repeats', '1'] if rehearsal else []
    out = [
        Part('Golden numbers, and all ways of attention', [
            '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/models/test_on_a_gpu.py'], 2),
        Part('Correctness: relative errors, against double precision on the CPU', [*checks, 'correctness'], 2),
        Part('Inference, bfloat16', [*speed, f'{cmt}:plain', cmt, f'{cmt}:deployed', 'convnext-t', '--dtype',
                                     'bfloat16', '--out', f'{folder}/inference_bf16'], 2),
        Part('Inference, float32, 8 images', [*speed, f'{cmt}:plain', cmt, 'convnext-t', '--batch', '8',
                                              '--out', f'{folder}/inference_fp32'], 2),
        Part('Forward and backward, AMP, 2 images', [
            *speed, f'{cmt}:plain', cmt, f'{cmt}:with-cp', 'convnext-t', '--batch', '2', '--train', '--dtype',
            'bfloat16', '--out', f'{folder}/training_bf16'], 2),
        Part('Forward and backward, float32, 2 images', [
            *speed, f'{cmt}:plain', cmt, 'convnext-t', '--batch', '2', '--train',
            '--out', f'{folder}/training_fp32'], 2),
        Part('Attention by each way and kernel, milliseconds', [
            'benchmarks/attention_kernels.py', '--device', device, '--batch', '2', '--dtype', 'bfloat16', '--train',
            *kernels], 1),
        Part('Depthwise 7x7 by layout, milliseconds', [*checks, 'depthwise'], .5),
        Part(f'Peak memory of a training step, 2 images of 800x1344, GB (mmdet published: {PUBLISHED})',
             [*checks, 'memory'], 2),
        *training(folder, rehearsal),
    ]
    if rehearsal:  # a slow processor, which others may use too, is given ten times as long
        out = [replace(part, cards=0, minutes=10 * part.minutes) for part in out]
    return out


def training(folder: Path, rehearsal: bool) -> List[Part]:
    """The demo of `make demo` in mixed precision, on one GPU and by two."""
    images, val, workers = (8, 4, 0) if rehearsal else (800, 100, 1)
    options = [f'{loader}_dataloader.{key}' for loader in ('train', 'val', 'test') for key in (
        f'dataset.data_root={folder}/shapes/', f'num_workers={workers}', f'persistent_workers={workers > 0}')]
    options += [f'{split}_evaluator.ann_file={folder}/shapes/annotations/val.json' for split in ('val', 'test')]

    def demo(name: str, epochs: int) -> List[str]:
        return ['tools/train.py', DEMO, '--amp', 'bf16', '--work-dir', f'{folder}/{name}', '--cfg-options',
                *options, f'train_cfg.max_epochs={epochs}']
    two = ['-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '29517']
    return [
        Part("The demo's scenes", ['tools/make_shapes.py', f'{folder}/shapes', '--images', f'{images}', '--val',
                                   f'{val}', '--size', '128x96'], .5, cards=0),
        Part('The demo, trained in mixed precision', demo('demo', 1 if rehearsal else 5), 2.5),
        Part('An epoch of the demo on two GPUs by NCCL', [*two, *demo('demo_two', 1), '--launcher', 'pytorch'], 1.5,
             cards=2),
    ]


def report(folder: Path, chosen: Optional[Sequence[Part]] = None) -> Path:
    """Runs parts, all by default, and writes ``gpu_report.md`` into a folder, anew after each.

    Returns:
        Path: Of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, cards = folder / 'gpu_report.md', torch.cuda.device_count()
    lines = ['# On a GPU', '', ', '.join(machine()), '']
    for part in parts(folder) if chosen is None else chosen:
        lines += [f'## {part.title}', '', f"`python {' '.join(part.command)}`", '']
        start = time.monotonic()
        said = run(part) if cards >= part.cards else f'left out: it needs {part.cards} GPU(s), and there are {cards}'
        lines += [said, '', f'{time.monotonic() - start:.0f} s', '']
        page.write_text('\n'.join(lines), encoding='utf-8')
        outcome = said.splitlines()[0] if '**' in said else 'done'
        print(f'{part.title}: {outcome}, {lines[-2]}', flush=True)
    lines += [f'![{plot.stem}]({plot.name})' for plot in sorted(folder.glob('*.png'))]
    page.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return page


def run(part: Part) -> str:
    """What a part printed, or how it failed."""
    # Files, not pipes: those stay open for as long as a process that the part started holds them.
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as error:
        process = subprocess.Popen([sys.executable, *part.command], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=error, start_new_session=True)
        try:
            code = process.wait(60 * part.minutes)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # on Ctrl-C too
            end_group(process)
        said, complaint = (file.seek(0) or file.read().strip() for file in (out, error))
    last = '\n'.join(said.splitlines()[-60:])
    if code == 0:
        return last if '|' in (line[:1] for line in last.splitlines()) else f'```\n{last}\n```'
    how = f'not done after {part.minutes:g} minutes' if code is None else f'code {code}'
    return f'**failed**: {how}\n\n```\n{last}\n{complaint[-2000:]}\n```'


def end_group(process: subprocess.Popen) -> None:
    """Ends a process and those that it started and left: first they are asked to."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(GRACE)
        except ProcessLookupError:  # none is left
            process.wait()
            return
        except subprocess.TimeoutExpired:
            continue


def machine() -> List[str]:
    facts = [f'torch {torch.__version__}', f'Python {platform.python_version()}']
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        facts.append(f'{card.name} (sm_{card.major}{card.minor}, {card.total_memory / 1e9:.0f} GB)')
    return facts if torch.cuda.is_available() else [*facts, 'no GPU']
