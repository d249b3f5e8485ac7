"""Top-1 and top-5 of a CMT classifier: `python tools/eval_imagenet.py DATA CHECKPOINT`.

    python tools/eval_imagenet.py data/imagenet cmt_small.pth
    torchrun --nproc-per-node 8 tools/eval_imagenet.py data/imagenet cmt_small.pth
    python tools/eval_imagenet.py data/imagenet cmt_small.pth --img-size 256 320 --bias-interpolation flat

DATA/val has one folder of images for each class, as ImageNet's. CHECKPOINT is an official file or one of
tools/train_classifier.py; the arch, the classes and the size of the images are read off its weights.
"""
import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from timm.data import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from tqdm import tqdm

from cmt_backbones.classifier import CMTClassifier, arch_of
from cmt_backbones.weights import convert, read_checkpoint

# The sets of the paper's Table 8, where torchvision has them: a test set for `train=False`.
TRANSFER_SETS = {
    'cifar10': lambda root, train, transform: datasets.CIFAR10(root, train, transform),
    'cifar100': lambda root, train, transform: datasets.CIFAR100(root, train, transform),
    'cars': lambda root, train, transform: datasets.StanfordCars(root, 'train' if train else 'test',
                                                                 transform),
    'pets': lambda root, train, transform: datasets.OxfordIIITPet(root, 'trainval' if train else 'test',
                                                                   transform=transform),
}


def open_set(name: str, root: Path, train: bool, transform) -> Dataset:
    """A data set with ``classes``: one of TRANSFER_SETS, or the ``'folder'`` root/train or root/val."""
    try:
        if name != 'folder':
            return TRANSFER_SETS[name](root, train, transform)
        return datasets.ImageFolder(root / ('train' if train else 'val'), transform)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f'cannot read the data set {name!r} in {root}: {error}')


def start_processes() -> tuple[torch.device, int, int]:
    """The device, rank and number of processes, which torchrun tells by the environment."""
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    cuda = torch.cuda.is_available()
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0))) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group('nccl' if cuda else 'gloo')
    return device, rank, world


def eval_loader(data: Dataset, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader:
    """The share of one process; together they see every image once."""
    return DataLoader(data, batch_size, sampler=range(rank, len(data), world), num_workers=workers,
                      pin_memory=torch.cuda.is_available())


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device, amp: bool = False) -> dict:
    """``top1`` and ``top5`` in percent and the number of ``images``, over all processes."""
    model.eval()
    sums = torch.zeros(3, device=device, dtype=torch.float64)
    bar = tqdm(loader, 'evaluating', mininterval=1, disable=dist.is_initialized() and dist.get_rank() > 0)
    for images, labels in bar:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=amp):
            logits = model(images)
        ranked = logits.float().topk(min(5, logits.shape[1])).indices == labels[:, None]  # (N, 5)
        sums += torch.stack([ranked[:, 0].sum(), ranked.sum(), torch.tensor(len(labels), device=device)])
        if not dist.is_initialized():
            bar.set_postfix(top1=f'{100 * sums[0] / sums[2]:.2f}', refresh=False)
    if dist.is_initialized():
        dist.all_reduce(sums)
    top1, top5, images = sums.tolist()
    return dict(top1=100 * top1 / images, top5=100 * top5 / images, images=int(images))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('checkpoint')
    parser.add_argument('--dataset', choices=['folder', *TRANSFER_SETS], default='folder')
    parser.add_argument('--img-size', type=int, nargs='+', metavar='PIXELS',
                        help="side, or height and width, of the images (default: the bias tables')")
    parser.add_argument('--bias-interpolation', choices=['geometric', 'flat'], default='geometric',
                        help='how the bias tables are resized to other sizes')
    parser.add_argument('--crop-pct', type=float, default=0.875, help='share of a side that is kept')
    parser.add_argument('--squash', action='store_true', help='fit the whole image, at any aspect ratio')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    args = parser.parse_args(argv)
    device, rank, world = start_processes()
    try:
        state, _ = convert(read_checkpoint(args.checkpoint))
        if 'head.fc.weight' not in state:
            raise ValueError('it holds no classifier, only a backbone')
        model = CMTClassifier(arch_of(state), num_classes=len(state['head.fc.weight']),
                              bias_interpolation=args.bias_interpolation)
        model.load_pretrained(args.checkpoint, new_head=False)
    except (ValueError, KeyError) as error:
        sys.exit(f'cannot evaluate {args.checkpoint}: {error}')
    sides = args.img_size or [model.arch['pretrain_img_size']]
    if len(sides) > 2 or min(sides) < 32:
        parser.error(f'--img-size takes a height and a width of at least 32, not {sides}')
    size = tuple(sides * 2)[:2]
    transform = create_transform(size, interpolation='bicubic', crop_pct=args.crop_pct,
                                 crop_mode='squash' if args.squash else 'center')
    data = open_set(args.dataset, args.data, False, transform)
    if len(data.classes) != model.num_classes:
        sys.exit(f'the classifier has {model.num_classes} classes, and the data set {len(data.classes)}')
    loader = eval_loader(data, args.batch_size, args.workers, rank, world)
    result = evaluate(model.to(device), loader, device, args.amp)
    if rank == 0:
        print(json.dumps(dict(checkpoint=args.checkpoint, size=size, bias=args.bias_interpolation, **result)))
    if world > 1:
        dist.destroy_process_group()


if __name__ == '__main__':
    main()
