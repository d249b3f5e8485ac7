"""Trains classifiers, CMT's and timm's, by the recipes of :mod:`.recipes`.

OUT/best.pth and OUT/last.pth go into the `init_cfg` of a detector unchanged; OUT/log.jsonl has a line for
each epoch. A resumed training goes on after the last complete epoch, and draws the random numbers that it
would have drawn.
"""
import json
import time
from types import SimpleNamespace
from typing import Callable, Dict

import timm
import torch
from mmengine.runner import save_checkpoint
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, distribute_bn, random_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.classification import (
    ClassificationError,
    eval_loader,
    eval_transform,
    open_set,
    train_loader,
    train_transform,
)
from ..models.classifier import CMTClassifier
from ..openmmlab.files import BACKEND
from ..weights import read_torch
from .evaluation import Process, evaluate
from .recipes import RECIPE


def train(args: SimpleNamespace, process: Process, report: Callable[[Dict[str, float]], None]) -> None:
    """Trains one classifier, from its start or its last complete epoch to its end.

    Args:
        args: Settings of :func:`.recipes.settings`, with `data` and `out` (folders), `dataset` (of
            :func:`~cmt_backbones.data.classification.open_set`), `pretrained` (a file or None), `resume`,
            `amp`, `with_cp`, `workers` (of each process) and `seed`.
        process: Of :func:`.evaluation.processes`.
        report: Is given the `epoch`, `loss`, `lr`, `top1`, `top5` and `seconds` of each epoch, in the first
            process; they are a line of OUT/log.jsonl, too.

    Raises:
        ClassificationError: Data or checkpoint do not fit, or the loss is not finite.
    """
    device, rank, world = process
    random_seed(args.seed, 0)  # every process starts from the same weights
    data = open_set(args.dataset, args.data, True, train_transform(args))
    loader = train_loader(data, args.batch_size, args.workers, args.repeats, rank, world)
    training = Training(args, loader, device, world)
    val = open_set(args.dataset, args.data, False, eval_transform(args.img_size, args.crop_pct))
    if val.classes != data.classes:
        single = set(val.classes) ^ set(data.classes)
        raise ClassificationError(f'train and val must have the same classes: {single} are in one only')
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
            with (args.out / 'log.jsonl').open('a', encoding='utf-8') as log:
                log.write(json.dumps(line) + '\n')
            report(line)


class Training:
    """What an epoch works on, and what a checkpoint keeps of it.

    Args:
        args: As of :func:`train`.
        loader: Of the images to train on.
        device: Where the model is.
        world: The number of processes.
    """

    def __init__(self, args: SimpleNamespace, loader: DataLoader, device: torch.device, world: int) -> None:
        self.args, self.loader, self.device, self.world = args, loader, device, world
        self.recipe = dict({name: getattr(args, name) for name in RECIPE}, processes=world,
                           model_kwargs=args.model_kwargs)
        classes = len(loader.dataset.classes)
        model = new_classifier(args, classes)
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
                raise ClassificationError(f'the loss is {loss.item()} in step {step} (epoch {self.epoch + 1}): '
                                          'lower --lr, raise --warmup-epochs, or set --clip-grad 1')
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
            save_checkpoint(published, str(self.args.out / 'best.pth'), backend_args=dict(backend=BACKEND))
        parts = dict(model=self.model, optimizer=self.optimizer, scaler=self.scaler)
        kept = dict({name: part.state_dict() for name, part in parts.items()}, best=self.best)
        save_checkpoint(dict(published, training=kept), str(self.args.out / 'last.pth'),
                        backend_args=dict(backend=BACKEND))

    def resume(self) -> None:
        """Goes on from OUT/last.pth."""
        path = self.args.out / 'last.pth'
        try:
            saved = read_torch(path, map_location=self.device)
            before = {'model': '', 'model_kwargs': {}, **saved['recipe']}  # older files say nothing of them: CMT's
            changed = sorted(k for k, v in self.recipe.items() if before[k] != v)
            if changed:
                raise ValueError(f'it was trained with other settings of {changed}: '
                                 f'{ {k: before[k] for k in changed} }')
            self.model.load_state_dict(saved['training']['model'])
            if self.ema:
                self.ema.module.load_state_dict(saved['state_dict'])
            self.optimizer.load_state_dict(saved['training']['optimizer'])
            self.scaler.load_state_dict(saved['training']['scaler'])
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise ClassificationError(f'cannot resume {path}: {error}') from None
        self.epoch, self.best = saved['epoch'], saved['training']['best']


def new_classifier(args: SimpleNamespace, classes: int) -> nn.Module:
    """CMT of an arch, or a model of timm's registry, as `args` of :func:`train` say.

    Raises:
        ClassificationError: timm knows no such model, does not build it so, or weights are asked for that
            only CMT reads.
    """
    if not args.model:
        model = CMTClassifier(args.arch, classes, img_size=args.img_size, drop_rate=args.drop_rate,
                              drop_path_rate=args.drop_path, with_cp=args.with_cp)
        if args.pretrained and not args.resume:
            model.load_pretrained(args.pretrained)
        return model
    if args.pretrained:
        raise ClassificationError(f'--pretrained is for CMT: {args.model} starts from noise here')
    try:
        cfg = timm.get_pretrained_cfg(args.model)
        size = dict(img_size=args.img_size) if cfg and cfg.fixed_input_size else {}
        model = timm.create_model(args.model, num_classes=classes, drop_rate=args.drop_rate,
                                  drop_path_rate=args.drop_path, **size, **args.model_kwargs)
        if args.with_cp:
            model.set_grad_checkpointing()
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ClassificationError(f'timm cannot build {args.model!r} for {args.img_size}x{args.img_size} with '
                                  f'{args.model_kwargs}: {error}') from None
    return model
