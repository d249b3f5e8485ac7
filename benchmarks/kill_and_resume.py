"""Kills a short training at random moments, resumes it each time, and compares its end with a whole one's.

    python benchmarks/kill_and_resume.py --kills 20

RetinaNet with a small CMT on drawn scenes: random flips, drop path, data workers, a moving average of the
weights. SIGKILL goes to all processes of the run, at a time drawn evenly from its whole duration, starting
and saving included; a run that ends before it is killed starts again from nothing.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from mmengine.config import Config
from tqdm import tqdm

from cmt_backbones.openmmlab import load_from_disk

ROOT = Path(__file__).resolve().parent.parent


def prepare(folder: Path, epochs: int) -> Path:
    """Draws scenes and writes the config; its path."""
    subprocess.run([sys.executable, ROOT / 'tools/make_shapes.py', folder / 'shapes', '--images', '12', '--val', '2',
                    '--seed', '0', '--size', '96x64'], check=True, stderr=subprocess.DEVNULL)
    cfg = Config.fromfile(ROOT / 'configs/mmdet/retinanet_cmt_ti_shapes.py')
    cfg.merge_from_dict(dict(
        model=dict(backbone=dict(drop_path_rate=.3), neck=dict(in_channels=[16, 24, 32], out_channels=16, num_outs=3),
                   bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1,
                                  anchor_generator=dict(strides=[8, 16, 32]))),
        train_dataloader=dict(batch_size=2, dataset=dict(data_root=f'{folder}/shapes/')),
        train_cfg=dict(max_epochs=epochs), default_hooks=dict(checkpoint=dict(max_keep_ckpts=2))))
    cfg.model.backbone.arch = dict(stem_channels=4, embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), mlp_ratio=2,
                                   pretrain_img_size=32)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=.1))
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, test_dataloader=None, test_cfg=None,
               test_evaluator=None)
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def train(config: Path, work_dir: Path, kill_after: float = float('inf')) -> bool:
    """Starts or resumes a run; whether it came to its end, rather than being killed after so many seconds."""
    with open(work_dir.with_suffix('.log'), 'a') as log:
        process = subprocess.Popen(
            [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', work_dir, '--resume', 'auto'], stdout=log,
            stderr=log, start_new_session=True, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
        end = time.time() + kill_after
        while process.poll() is None and time.time() < end:
            time.sleep(.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    if process.returncode:
        raise SystemExit(f'the run failed; its output is in {work_dir.with_suffix(".log")}')
    return True


def difference(one: Path, other: Path) -> float:
    """The largest between two checkpoints' weights, their averages, and the optimizer's moments."""
    largest = 0.
    one, other = load_from_disk(str(one)), load_from_disk(str(other))
    pairs = [(one[key], other[key]) for key in ('state_dict', 'ema_state_dict')]
    pairs += [(a, other['optimizer']['state'][i]) for i, a in one['optimizer']['state'].items()]
    for a, b in pairs:
        if a.keys() != b.keys():
            raise ValueError(f'unlike keys: {sorted(set(a) ^ set(b))}')
        largest = max([largest, *((a[key].double() - b[key].double()).abs().max().item() for key in a)])
    return largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=20, help='of 6 iterations; a checkpoint after each')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, default=ROOT / 'work_dirs/kill_and_resume', help='is emptied')
    args = parser.parse_args()
    random.seed(args.seed)
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    args.folder = args.folder.resolve()
    config = prepare(args.folder, args.epochs)

    began = time.time()
    train(config, args.folder / 'whole')
    duration = time.time() - began
    last = f'epoch_{args.epochs}.pth'
    kills = runs = 0
    largest = 0.
    with tqdm(total=args.kills, unit='kill') as progress:
        while kills < args.kills:
            work_dir = args.folder / f'run_{runs}'
            runs += 1
            while kills < args.kills and not train(config, work_dir, random.uniform(0, duration)):
                kills += 1
                progress.update()
            if not (work_dir / last).exists():
                train(config, work_dir)
            largest = max(largest, difference(args.folder / 'whole' / last, work_dir / last))
            left = [path.name for path in work_dir.glob('.*.partial')]
            if left:
                raise SystemExit(f'{work_dir} has left-over files: {left}')
    resumed = sum(log.read_text().count('resumed epoch: ') for log in args.folder.glob('run_*.log'))
    print(f'{kills} kills in {runs} runs of {duration:.0f} s, resumed from a checkpoint {resumed} times; largest '
          f'difference from the whole run: {largest:g}')
    if largest > 1e-6:
        raise SystemExit('the resumed runs ended elsewhere')


if __name__ == '__main__':
    main()
