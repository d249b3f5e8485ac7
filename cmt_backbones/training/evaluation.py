"""Top-1 and top-5 of classifiers, over all processes of torchrun."""
import os
from contextlib import contextmanager
from typing import Dict, Iterator, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.classification import ClassificationError
from ..models.classifier import CMTClassifier, arch_of
from ..openmmlab.processes import ended_in_order
from ..weights import convert, read_checkpoint


class Process(NamedTuple):
    """One of `world` processes that work together."""
    device: torch.device
    rank: int
    world: int


@contextmanager
def processes() -> Iterator[Process]:
    """Joins the processes of torchrun, which tells of them by the environment, and leaves them at the end."""
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    cuda = torch.cuda.is_available()
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0))) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
    with ended_in_order():
        if world > 1:
            dist.init_process_group('nccl' if cuda else 'gloo')
        yield Process(device, rank, world)


def read_classifier(checkpoint: str, bias_interpolation: str = 'geometric') -> CMTClassifier:
    """The classifier of a file, whose arch, classes and size of images are read off its weights.

    Args:
        checkpoint: An official file, or one of :mod:`.classification`.
        bias_interpolation: How the bias tables are resized to other sizes.

    Raises:
        ClassificationError: It cannot be read, or holds no classifier.
    """
    try:
        state, _ = convert(read_checkpoint(checkpoint))
        if 'head.fc.weight' not in state:
            raise ValueError('it holds no classifier, only a backbone')
        model = CMTClassifier(arch_of(state), num_classes=len(state['head.fc.weight']),
                              bias_interpolation=bias_interpolation)
        model.load_pretrained(checkpoint, new_head=False)
    except (ValueError, KeyError) as error:
        raise ClassificationError(f'cannot evaluate {checkpoint}: {error}') from None
    return model


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device, amp: bool = False) -> Dict[str, float]:
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
