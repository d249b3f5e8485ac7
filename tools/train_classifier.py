"""Trains a CMT classifier: `torchrun --nproc-per-node 8 tools/train_classifier.py DATA OUT --preset small`.

    torchrun --nproc-per-node 8 tools/train_classifier.py data/imagenet work_dirs/cmt_s --preset small --amp
    python tools/train_classifier.py data/pets work_dirs/pets --dataset pets --preset finetune --arch small \\
        --pretrained cmt_small.pth

DATA has a folder for each class in DATA/train and in DATA/val. The presets `tiny`, `xsmall`, `small` and
`base` are the official ImageNet recipes (github.com/ggjy/CMT.pytorch, README and train.py), whose batches
are for 8 processes; `finetune` is a recipe of ours, since the paper gives none, and `plain` is one without
augmentation. Every setting of a preset is also an option. OUT/best.pth and OUT/last.pth go into the
`init_cfg` of a detector unchanged; OUT/log.jsonl has a line for each epoch. A call with the same OUT and
--resume goes on after the last complete epoch, and draws the random numbers that it would have drawn.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.runner import save_checkpoint
from timm.data import Mixup, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, distribute_bn, random_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

from cmt_backbones.classifier import CMTClassifier
from cmt_backbones.models.cmt import ARCHS
from cmt_backbones.models.scaling import scaled_arch
from cmt_backbones.weights import read_torch
from eval_imagenet import TRANSFER_SETS, eval_loader, evaluate, open_set, start_processes

# The official defaults. `lr` is for 512 images a step and grows with them; `batch_size` is a process's.
RECIPE = dict(
    arch='small', img_size=224, epochs=300, batch_size=128, lr=5e-4, weight_decay=0.05, layer_decay=1.,
    warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, cooldown_epochs=10, clip_grad=0., drop_path=0.1,
    drop_rate=0.1, ema=0.99996, repeats=3, smoothing=0.1, mixup=0.8, cutmix=1., color_jitter=0.4,
    auto_augment='rand-m9-mstd0.5-inc1', erasing=0.25, min_scale=0.08, hflip=0.5, vflip=0., crop_pct=0.875)
PRESETS = dict(
    tiny=dict(arch='tiny', img_size=160, epochs=800, batch_size=256, lr=8e-4, warmup_lr=1e-7, ema=0.),
    xsmall=dict(arch='xsmall', img_size=192, epochs=400, batch_size=256, lr=7e-4, weight_decay=0.04,
                drop_path=0.08, min_lr=2e-5, ema=0.9998),
    small=dict(warmup_lr=1e-7),
    base=dict(arch='base', img_size=256, batch_size=64, drop_path=0.25, drop_rate=0.3, min_lr=2e-5),
    finetune=dict(epochs=100, batch_size=64, lr=2e-4, layer_decay=0.85, warmup_epochs=5, cooldown_epochs=0,
                  min_lr=1e-6, ema=0.9998, repeats=1),
    plain=dict(epochs=20, batch_size=32, lr=8e-3, warmup_epochs=1, cooldown_epochs=0, drop_path=0., ema=0.,
               repeats=1, mixup=0., cutmix=0., color_jitter=0., auto_augment='', erasing=0., min_scale=1.,
               hflip=0., crop_pct=1.),
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--preset', choices=PRESETS, default='small')
    parser.add_argument('--dataset', choices=['folder', *TRANSFER_SETS], default='folder')
    parser.add_argument('--pretrained', metavar='FILE', help='start from these weights')
    parser.add_argument('--phi', type=float, help='an arch of scaled_arch(PHI) instead of --arch')
    parser.add_argument('--resume', action='store_true', help='go on from OUT/last.pth')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--with-cp', action='store_true', help='recompute blocks, for memory')
    parser.add_argument('--workers', type=int, default=4, help='of each process')
    parser.add_argument('--seed', type=int, default=0)
    recipe = parser.add_argument_group('settings of the preset')
    for name, value in RECIPE.items():
        recipe.add_argument(f'--{name.replace("_", "-")}', type=type(value), default=argparse.SUPPRESS,
                            choices=ARCHS if name == 'arch' else None)
    given = parser.parse_args(argv)
    args = argparse.Namespace(**{**RECIPE, **PRESETS[given.preset], **vars(given)})
    if args.phi is not None:
        args.arch = scaled_arch(args.phi)
        args.img_size = getattr(given, 'img_size', args.arch['pretrain_img_size'])
    if args.batch_size % 2 and (args.mixup or args.cutmix):
        parser.error(f'mixup and cutmix pair images: --batch-size must be even, not {args.batch_size}')
    if (args.out / 'last.pth').exists() and not args.resume:
        parser.error(f'{args.out} holds a training: --resume it, or name another folder')
    return args


def train_loader(args, rank: int, world: int) -> DataLoader:
    whole = dict(scale=(1, 1), ratio=(1, 1)) if args.min_scale == 1 else dict(scale=(args.min_scale, 1))
    transform = create_transform(
        args.img_size, is_training=True, hflip=args.hflip, vflip=args.vflip,
        color_jitter=args.color_jitter, auto_augment=args.auto_augment or None,
        interpolation='bicubic', re_prob=args.erasing, re_mode='pixel', **whole)
    data = open_set(args.dataset, args.data, True, transform)
    if len(data) < args.batch_size * world:
        sys.exit(f'{len(data)} images are less than a step takes, {args.batch_size} on each of {world} '
                 'processes: lower --batch-size')
    if args.repeats > 1:
        sampler = RepeatAugSampler(data, world, rank, num_repeats=args.repeats)
    else:
        sampler = DistributedSampler(data, world, rank)
    return DataLoader(data, args.batch_size, sampler=sampler, num_workers=args.workers, drop_last=True,
                      pin_memory=torch.cuda.is_available())


class Training:
    """What an epoch works on, and what a checkpoint keeps of it."""

    def __init__(self, args, loader: DataLoader, device: torch.device, world: int) -> None:
        self.args, self.loader, self.device, self.world = args, loader, device, world
        self.recipe = dict({name: getattr(args, name) for name in RECIPE}, processes=world)
        classes = len(loader.dataset.classes)
        model = CMTClassifier(args.arch, classes, img_size=args.img_size, drop_rate=args.drop_rate,
                              drop_path_rate=args.drop_path, with_cp=args.with_cp)
        if args.pretrained and not args.resume:
            model.load_pretrained(args.pretrained)
        self.model = model.to(device)
        self.ema = ModelEmaV3(model, decay=args.ema) if args.ema else None
        self.optimizer = create_optimizer_v2(
            model, 'adamw', lr=args.lr * args.batch_size * world / 512, weight_decay=args.weight_decay,
            layer_decay=args.layer_decay if args.layer_decay < 1 else None)
        self.scheduler, self.epochs = create_scheduler_v2(
            self.optimizer, 'cosine', num_epochs=args.epochs, warmup_epochs=args.warmup_epochs,
            warmup_lr=args.warmup_lr, min_lr=args.min_lr, cooldown_epochs=args.cooldown_epochs,
            step_on_epochs=False, updates_per_epoch=len(loader))
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == 'cuda')
        self.mixup = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing,
                           num_classes=classes) if args.mixup or args.cutmix else None
        self.loss = SoftTargetCrossEntropy() if self.mixup else nn.CrossEntropyLoss(
            label_smoothing=args.smoothing)
        self.epoch, self.best = 0, -1.
        if args.resume:
            self.resume()
        ids = [device.index] if device.type == 'cuda' else None
        self.parallel = DistributedDataParallel(model, ids) if world > 1 else model

    def train_epoch(self, rank: int) -> float:
        """One pass over the images; returns the mean loss of this process."""
        # Random numbers are a function of the epoch, so that there is no state to resume.
        random_seed(self.args.seed + self.epoch * self.world, rank)
        self.loader.sampler.set_epoch(self.epoch)
        self.parallel.train()
        total, step = 0., self.epoch * len(self.loader)
        bar = tqdm(self.loader, f'epoch {self.epoch + 1}/{self.epochs}', mininterval=1, disable=rank > 0)
        for i, (images, labels) in enumerate(bar, 1):
            self.scheduler.step_update(step)
            images, labels = images.to(self.device, non_blocking=True), labels.to(self.device)
            if self.mixup:
                images, labels = self.mixup(images, labels)
            with torch.autocast(self.device.type, enabled=self.args.amp):
                loss = self.loss(self.parallel(images), labels)
            if not loss.isfinite():
                sys.exit(f'the loss is {loss.item()} in step {step} (epoch {self.epoch + 1}): lower --lr, '
                         'raise --warmup-epochs, or set --clip-grad 1')
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            if self.args.clip_grad:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            step += 1
            if self.ema:
                self.ema.update(self.model, step)
            total += loss.item()
            bar.set_postfix(loss=f'{total / i:.3f}', refresh=False)
        for model in (self.model, self.ema.module if self.ema else None):
            if model is not None and self.world > 1:  # each process has running statistics of its own
                distribute_bn(model, self.world, reduce=True)
        self.epoch += 1
        return total / len(self.loader)

    def weights(self) -> nn.Module:
        """The model that is evaluated and published."""
        return self.ema.module if self.ema else self.model

    def save(self, top1: float) -> None:
        """OUT/last.pth, with all that is needed to go on, and OUT/best.pth: complete or as they were."""
        published = dict(state_dict=self.weights().state_dict(), classes=self.loader.dataset.classes,
                         recipe=self.recipe, epoch=self.epoch, top1=top1)
        if top1 > self.best:
            self.best = top1
            save_checkpoint(published, str(self.args.out / 'best.pth'))
        parts = dict(model=self.model, optimizer=self.optimizer, scaler=self.scaler)
        kept = dict({name: part.state_dict() for name, part in parts.items()}, best=self.best)
        save_checkpoint(dict(published, training=kept), str(self.args.out / 'last.pth'))

    def resume(self) -> None:
        path = self.args.out / 'last.pth'
        try:
            saved = read_torch(path, map_location=self.device)
            changed = sorted(k for k, v in self.recipe.items() if saved['recipe'][k] != v)
            if changed:
                raise ValueError(f'it was trained with other settings of {changed}: '
                                 f'{ {k: saved["recipe"][k] for k in changed} }')
            self.model.load_state_dict(saved['training']['model'])
            if self.ema:
                self.ema.module.load_state_dict(saved['state_dict'])
            self.optimizer.load_state_dict(saved['training']['optimizer'])
            self.scaler.load_state_dict(saved['training']['scaler'])
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            sys.exit(f'cannot resume {path}: {error}')
        self.epoch, self.best = saved['epoch'], saved['training']['best']


def main(argv=None):
    args = parse_args(argv)
    device, rank, world = start_processes()
    random_seed(args.seed, 0)  # every process starts from the same weights
    loader = train_loader(args, rank, world)
    training = Training(args, loader, device, world)
    transform = create_transform(args.img_size, interpolation='bicubic', crop_pct=args.crop_pct)
    val = open_set(args.dataset, args.data, False, transform)
    if val.classes != loader.dataset.classes:
        single = set(val.classes) ^ set(loader.dataset.classes)
        sys.exit(f'train and val must have the same classes: {single} are in one only')
    val_loader = eval_loader(val, args.batch_size * 2, args.workers, rank, world)
    args.out.mkdir(parents=True, exist_ok=True)
    while training.epoch < training.epochs:
        started = time.time()
        loss = training.train_epoch(rank)
        scores = evaluate(training.weights(), val_loader, device, args.amp)
        if rank == 0:
            training.save(scores['top1'])
            lr = max(group['lr'] for group in training.optimizer.param_groups)
            line = dict(epoch=training.epoch, loss=loss, lr=lr, top1=scores['top1'], top5=scores['top5'],
                        seconds=time.time() - started)
            line = {k: round(v, 6) for k, v in line.items()}
            with (args.out / 'log.jsonl').open('a') as log:
                log.write(json.dumps(line) + '\n')
            print(json.dumps(line), flush=True)
    if world > 1:
        del training  # a DistributedDataParallel that outlives its process group may hang
        dist.destroy_process_group()


if __name__ == '__main__':
    main()
