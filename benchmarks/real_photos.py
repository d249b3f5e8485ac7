"""Detectors and segmentors on real photos, from classifiers of CIFAR-10 and from scratch; see real_photos.md.

    python benchmarks/real_photos.py train [NAME ...]   the runs that are not done, in their order
    python benchmarks/real_photos.py show               tables and figures of those that are

Several calls of the first share the work. A run that was stopped goes on where it was. Results are kept in
benchmarks/real_photos.json, so that `show` needs neither data nor weights.
"""
import argparse
import fcntl
import fnmatch
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import timm
import torch

import cmt_backbones.classifier  # noqa: F401  (registers cmt_tiny)
from cmt_backbones.analysis.flops import count
from cmt_backbones.export.model_card import table
from cmt_backbones.visualization.training_curves import read_run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/real_photos.json'
WORK = ROOT / 'work_dirs/real_photos'
CLASSIFIERS = ROOT / 'work_dirs/pretrain'
TASKS = dict(bccd=('bccd_retinanet', 'coco/bbox_mAP', 'epoch_12.pth'),
             camvid=('camvid_upernet', 'mIoU', 'iter_800.pth'))
TITLES = dict(bccd=dict(val='blood cells, val', test='blood cells, test'),
              camvid=dict(val='streets, val', test='streets, Seq05VD'))
UNITS = dict(bccd='box mAP', camvid='mIoU')
FORMS = dict(bccd='{:.3f}'.format, camvid='{:.1f}'.format)
COLORS = dict(cmt_ti='tab:red', r18='tab:blue', convnext_half='tab:green', pvt_v2_b1='tab:orange')
NAMES = dict(cmt_ti='CMT-Ti', r18='ResNet-18', convnext_half='ConvNeXt-T, half as wide', pvt_v2_b1='PVTv2-B1')
OF_TIMM = dict(cmt_ti=('cmt_tiny', dict(img_size=64)), r18=('resnet18', {}), pvt_v2_b1=('pvt_v2_b1', {}),
               convnext_half=('convnext_tiny', dict(dims=(48, 96, 192, 384))))
# RetinaNet's neck and head of 128 channels, half of its own: a step takes 0.6 of the time.
NARROW = ['model.neck.out_channels=128', 'model.bbox_head.in_channels=128', 'model.bbox_head.feat_channels=128']
VARIANTS = {
    'frozen': ['model.backbone.frozen_stages=1'],
    'layer_decay': ['optim_wrapper.constructor=cmt_backbones.LayerDecayOptimWrapperConstructor',
                    'optim_wrapper.paramwise_cfg.decay_rate=0.8'],
    'slow': ['optim_wrapper.optimizer.lr=2e-4'],
    'fast': ['optim_wrapper.optimizer.lr=1e-3'],
}


def all_runs():
    """Names of the runs, TASK/BACKBONE/START/SEED, and TASK/BACKBONE/START/VARIANT for what was tried with seed 0."""
    main = [(task, backbone) for task in TASKS for backbone in ('cmt_ti', 'r18')]
    for seed in range(3):
        yield from (f'{task}/{backbone}/{start}/{seed}' for start in ('cifar', 'scratch') for task, backbone in main)
    yield from (f'{task}/cmt_ti/cifar/{variant}' for task in TASKS for variant in ('frozen', 'layer_decay'))
    yield from (f'camvid/{backbone}/cifar/{variant}' for variant in ('slow', 'fast') for backbone in ('cmt_ti', 'r18'))
    yield from (f'{task}/{backbone}/{start}/0' for start in ('cifar', 'scratch') for task in TASKS
                for backbone in ('convnext_half', 'pvt_v2_b1'))


def classifier(backbone):
    return CLASSIFIERS / backbone / 'last.pth'


def weights_for(run):
    """The file of a run's classifier, under names that the backbone reads."""
    backbone = run.split('/')[1]
    file = classifier(backbone)
    if backbone != 'pvt_v2_b1':
        return file
    # timm numbers stages from 0 and has their parts within; mmdet converts names of the official file.
    renamed, state = WORK / run / 'official_names.pth', {}
    for name, value in torch.load(file, map_location='cpu', weights_only=False)['state_dict'].items():
        name = re.sub(r'^patch_embed\.', 'patch_embed1.', name)
        name = re.sub(r'^stages\.(\d)\.downsample\.', lambda m: f'patch_embed{int(m[1]) + 1}.', name)
        name = re.sub(r'^stages\.(\d)\.blocks\.', lambda m: f'block{int(m[1]) + 1}.', name)
        name = re.sub(r'^stages\.(\d)\.norm\.', lambda m: f'norm{int(m[1]) + 1}.', name)
        state[name.replace('mlp.dwconv.', 'mlp.dwconv.dwconv.')] = value
    torch.save(state, renamed)
    return renamed


def command(run):
    task, backbone, start, variant = run.split('/')
    options = [f'randomness.seed={variant}' if variant.isdigit() else 'randomness.seed=0', *VARIANTS.get(variant, [])]
    if task == 'bccd':
        options += [*NARROW, 'train_cfg.val_interval=3']
    elif backbone == 'r18':
        options += ['model.backbone.type=ResNet']  # mmseg's own has another stem than the classifier
    if start == 'cifar':
        options += ['model.backbone.init_cfg.type=Pretrained',
                    f'model.backbone.init_cfg.checkpoint={weights_for(run).relative_to(ROOT)}']
        if (task, backbone) == ('bccd', 'r18'):
            options += ['model.backbone.init_cfg._delete_=True']  # its config has None
    return [f'benchmarks/configs/{TASKS[task][0]}_{backbone}.py', '--cfg-options', *options]


def train_one(run):
    """Trains and tests a run, unless another process is at it."""
    task, folder = run.split('/')[0], WORK / run
    _, metric, last = TASKS[task]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if (folder / 'done').exists():
            return
        config, *options = command(run)
        print(run, flush=True)
        common = dict(cwd=ROOT, check=True, stdout=(folder / 'log.txt').open('a'), stderr=subprocess.STDOUT)
        if not (folder / last).exists():
            subprocess.run([sys.executable, 'tools/train.py', config, '--amp', 'bf16', '--work-dir', folder, '--resume',
                            *options], **common)
        subprocess.run([sys.executable, 'tools/test.py', config, folder / last, '--amp', '--work-dir', folder / 'test',
                        *options], **common)
        tested = [json.loads(file.read_text()) for file in sorted((folder / 'test').glob('*/*.json'))][-1]
        curve = read_run(folder, metric + '$')
        (validated,) = [curve for (name, _), curve in curve.items() if name == metric]
        keep(run, dict(val={str(step): round(value, 3) for step, value in validated.items()},
                       test=round(tested[metric], 3)))
        (folder / 'done').touch()


def results():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(run, result):
    """Adds a result to the file, which other processes write too."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = {**results(), run: result}
        lines = [f'{json.dumps(name)}: {json.dumps(value)}' for name, value in sorted(done.items())]
        new = RESULTS.with_suffix('.new')
        new.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
        new.replace(RESULTS)
        print(run, result, flush=True)


def gmacs(backbone):
    """Multiply-adds of the classifier for an image of 64x64, in 1e9."""
    name, options = OF_TIMM[backbone]
    return count(timm.create_model(name, num_classes=10, **options).eval().to('meta'), (64, 64))['gmacs']


def mean_and_spread(values, form):
    """As in '.409 ± .004', the standard deviation of a sample, or the only value."""
    text = [form(statistics.mean(values))] + ([form(statistics.stdev(values))] if len(values) > 1 else [])
    return ' ± '.join(text)


def last_of(result):
    return list(result['val'].values())[-1]


def show_classifiers(done):
    rows = {b: done[f'cifar10/{b}'] for b in NAMES if f'cifar10/{b}' in done}
    longest = max(len(row['top1']) for row in rows.values())
    lines = []
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout='constrained')
    for backbone, row in rows.items():
        cost = gmacs(backbone)
        top1 = [f'{v:.1f}' for v in row['top1']]
        lines += [[NAMES[backbone], f'{cost:.3f}', f'{sum(row["seconds"]) / 60:.0f}',
                   *top1, *[''] * (longest - len(top1))]]
        epochs = range(1, 1 + len(row['top1']))
        for axis, unit in zip(axes, (1, 3 * 50000 * cost / 1e6)):  # backward takes twice as much as forward
            axis.plot([unit * i for i in epochs], row['top1'], '.-', color=COLORS[backbone], label=NAMES[backbone])
    axes[0].set(xlabel='epochs', ylabel='top-1 on CIFAR-10 at 64x64, %')
    axes[1].set(xlabel='multiply-adds of the training, 1e15')
    axes[0].legend(loc='lower right')
    figure.savefig(RESULTS.with_name('real_photos_classifiers.png'), dpi=110)
    return table(['', 'GMACs', 'minutes', *range(1, 1 + longest)], lines)


def show_transfer(done):
    def values(task, backbone, start, which):
        runs = [run for run in done if re.fullmatch(rf'{task}/{backbone}/{start}/\d', run)]
        return [done[run]['test'] if which == 'test' else last_of(done[run]) for run in runs]

    starts = dict(scratch='from scratch', cifar='from CIFAR-10')
    head = [f'{TITLES[task][which]}, {name}' for task in TASKS for which in ('val', 'test') for name in starts.values()]
    lines = []
    shown = [backbone for backbone in NAMES if any(f'/{backbone}/' in run for run in done)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.5 + 0.55 * len(shown)), sharey=True, layout='constrained')
    for row, backbone in enumerate(shown):
        cells = []
        for task, axis in zip(TASKS, axes):
            for which in ('val', 'test'):
                found = {start: values(task, backbone, start, which) for start in starts}
                cells += [mean_and_spread(v, FORMS[task]) if v else '' for v in found.values()]
            means = [statistics.mean(v) for v in found.values() if v]
            axis.plot(means, [row] * len(means), color=COLORS[backbone], alpha=0.4)
            for start, v in found.items():
                axis.plot(v, [row] * len(v), 'o', color=COLORS[backbone], label=starts[start] if row == 0 else None,
                          markerfacecolor='white' if start == 'scratch' else None)
        lines += [[NAMES[backbone], *cells]]
    for task, axis in zip(TASKS, axes):
        axis.set(yticks=range(len(shown)), yticklabels=[NAMES[backbone] for backbone in shown],
                 ylim=(len(shown) - 0.5, -0.5), title=TITLES[task]['test'], xlabel=UNITS[task])
        axis.grid(axis='x', alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2)
    figure.savefig(RESULTS.with_name('real_photos.png'), dpi=110)
    return table(['', *head], lines)


def show_variants(done):
    """What was tried with seed 0, beside seed 0 as it is."""
    lines = []
    for prefix in sorted({run.rpartition('/')[0] for run in done if run.rpartition('/')[2] in VARIANTS}):
        for run in (f'{prefix}/{variant}' for variant in ('0', *VARIANTS)):
            if run in done:
                form = FORMS[run.split('/')[0]]
                lines += [[run, form(last_of(done[run])), form(done[run]['test'])]]
    return table(['seed 0', 'val', 'test'], lines)


def show():
    done = results()
    for part in show_classifiers, show_transfer, show_variants:
        print('\n'.join(part(done)) + '\n')


def keep_classifiers():
    for log in CLASSIFIERS.glob('*/log.jsonl'):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        keep(f'cifar10/{log.parent.name}', dict(top1=[line['top1'] for line in lines],
                                                seconds=[round(line['seconds']) for line in lines]))


def train(patterns):
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    for run in all_runs():
        ready = '/scratch/' in run or classifier(run.split('/')[1]).exists()
        if ready and (not patterns or any(fnmatch.fnmatch(run, pattern) for pattern in patterns)):
            train_one(run)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('what', choices=['train', 'show'])
parser.add_argument('runs', nargs='*', metavar='NAME', help="as in 'bccd/*/scratch/*'")
args = parser.parse_args()
if args.what == 'train':
    train(args.runs)
else:
    keep_classifiers()
    show()
