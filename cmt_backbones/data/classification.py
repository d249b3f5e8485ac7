"""Images with classes, for classifiers: folders as ImageNet's, and the sets of CMT's Table 8."""
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Tuple, Union

import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision import datasets

# The sets of the paper's Table 8, where torchvision has them: a test set for `train=False`.
TRANSFER_SETS: Dict[str, Callable[[Path, bool, Any], Dataset]] = {
    'cifar10': lambda root, train, transform: datasets.CIFAR10(root, train, transform),
    'cifar100': lambda root, train, transform: datasets.CIFAR100(root, train, transform),
    'cars': lambda root, train, transform: datasets.StanfordCars(root, 'train' if train else 'test',
                                                                 transform),
    'pets': lambda root, train, transform: datasets.OxfordIIITPet(root, 'trainval' if train else 'test',
                                                                   transform=transform),
}


class ClassificationError(Exception):
    """Why a classifier cannot be trained or evaluated, in one line."""


def open_set(name: str, root: Path, train: bool, transform: Callable) -> Dataset:
    """A data set with ``classes``: one of TRANSFER_SETS, or the ``'folder'`` root/train or root/val.

    Raises:
        ClassificationError: It is not there.
    """
    try:
        if name != 'folder':
            return TRANSFER_SETS[name](root, train, transform)
        return datasets.ImageFolder(root / ('train' if train else 'val'), transform)
    except (FileNotFoundError, RuntimeError) as error:
        raise ClassificationError(f'cannot read the data set {name!r} in {root}: {error}') from None


def train_transform(recipe: SimpleNamespace) -> Callable:
    """The augmentation of a recipe, see :mod:`cmt_backbones.training.recipes`."""
    whole = dict(scale=(1, 1), ratio=(1, 1)) if recipe.min_scale == 1 else dict(scale=(recipe.min_scale, 1))
    return create_transform(
        recipe.img_size, is_training=True, hflip=recipe.hflip, vflip=recipe.vflip,
        color_jitter=recipe.color_jitter, auto_augment=recipe.auto_augment or None,
        interpolation='bicubic', re_prob=recipe.erasing, re_mode='pixel', **whole)


def eval_transform(size: Union[int, Tuple[int, int]], crop_pct: float, squash: bool = False) -> Callable:
    """To one size, an image's middle, or with `squash` the whole of it at any aspect ratio.

    Args:
        size: Side, or height and width, in pixels.
        crop_pct: Share of a side that is kept.
    """
    return create_transform(size, interpolation='bicubic', crop_pct=crop_pct,
                            crop_mode='squash' if squash else 'center')


def train_loader(data: Dataset, batch_size: int, workers: int, repeats: int = 1, rank: int = 0,
                 world: int = 1) -> DataLoader:
    """The share of one process; with `repeats`, every image comes so many times in a row, augmented anew.

    Raises:
        ClassificationError: There are less images than a step takes.
    """
    if len(data) < batch_size * world:
        raise ClassificationError(f'{len(data)} images are less than a step takes, {batch_size} on each of '
                                  f'{world} processes: lower --batch-size')
    if repeats > 1:
        sampler = RepeatAugSampler(data, world, rank, num_repeats=repeats)
    else:
        sampler = DistributedSampler(data, world, rank)
    return DataLoader(data, batch_size, sampler=sampler, num_workers=workers, drop_last=True,
                      pin_memory=torch.cuda.is_available())


def eval_loader(data: Dataset, batch_size: int, workers: int, rank: int = 0, world: int = 1) -> DataLoader:
    """The share of one process; together they see every image once."""
    return DataLoader(data, batch_size, sampler=range(rank, len(data), world), num_workers=workers,
                      pin_memory=torch.cuda.is_available())
