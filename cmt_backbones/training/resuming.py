"""Resuming: a run that was stopped, in order or not, goes on as one that never was."""
import random
from itertools import chain, repeat
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import broadcast_object_list, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ..registration import register


@register(HOOKS, 'cmt_backbones.training.ResumableRandomness')
class ResumableRandomness(Hook):
    """Makes a resumed run see the batches and draw the random numbers of one that never stopped.

    mmengine restores weights, optimizer and schedule, but neither the random state of the model
    (drop path, dropout) nor that of the data workers, nor the place within an epoch. Here batches and
    randomness are functions of the run's seed, the rank and how far the run is, so there is no state to
    restore, and the batches that were used are passed over without loading their images.

    An image that cannot be loaded ends the run with an error that names its file.
    """

    def __init__(self) -> None:
        self.place = (0, 0)  # batches of the epoch that were used, and how many it has
        self.epoch_start: Optional[int] = None  # the iteration that the epoch began with

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            self.place = checkpoint['meta'].get('place_in_epoch', self.place)

    def before_train(self, runner: Runner) -> None:
        loop, loader = runner.train_loop, runner.train_dataloader
        self.by_epoch = not hasattr(loop, 'dataloader_iterator')
        self.seed, = from_first_process(lambda: [runner.seed])
        # A sampler built before the seed of the checkpoint was known has drawn one of its own.
        batch_sampler = build_batch_sampler(runner.cfg.get('train_dataloader'), loader, self.seed)
        self.batches = ResumableBatches(batch_sampler, (self.seed, get_rank()), endless=not self.by_epoch)
        loader.dataset.__getitems__ = SeededItems(loader.dataset)
        if not self.by_epoch:
            skips = hasattr(loop.dataloader_iterator, 'skip_iter')
            loop.dataloader_iterator = None  # ends its workers
        # A DataLoader refuses to have these set, for the sake of iterators under way: there are none.
        vars(loader).update(sampler=self.batches.sampler, batch_sampler=self.batches, _iterator=None)
        if not self.by_epoch:
            self.batches.used = runner.iter
            loop.dataloader_iterator = UnusedBatches(loader, 0 if skips else runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        if not self.by_epoch:
            return
        (used, length), self.place = self.place, (0, 0)
        if used and length != len(self.batches):
            runner.logger.warning(
                f'the epoch begins anew: the checkpoint is from the midst of one of {length} batches, and '
                f'with this batch size and number of processes it has {len(self.batches)}')
            used = 0
        self.batches.epoch, self.batches.used = runner.epoch, used
        if used:
            count_from(runner.train_loop, used)
        self.epoch_start = runner.iter - used

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_everything(self.seed, get_rank(), runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        self.epoch_start = runner.iter

    def before_val_epoch(self, runner: Runner) -> None:
        runner.val_dataloader.dataset.__getitems__ = Items(runner.val_dataloader.dataset)

    def before_test_epoch(self, runner: Runner) -> None:
        runner.test_dataloader.dataset.__getitems__ = Items(runner.test_dataloader.dataset)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint['meta']
        if self.epoch_start is not None and meta['epoch'] == runner.epoch:
            meta['place_in_epoch'] = (meta['iter'] - self.epoch_start, len(self.batches))


def count_from(loop: EpochBasedTrainLoop, used: int) -> None:
    """Has a loop count the batches of one epoch from those that were used: hooks ask for the last of an epoch,
    and the log tells it."""
    run_iter = loop.run_iter

    def run_and_count(number: int, batch: Any) -> None:
        run_iter(number + used, batch)
        if number + used + 1 == len(loop.dataloader):
            loop.run_iter = run_iter

    loop.run_iter = run_and_count


class ResumableBatches:
    """A batch sampler whose epochs may begin after some batches, and whose batches say what to seed with.

    Args:
        batch_sampler (BatchSampler): Gives the indices of each batch.
        stream (Sequence[int]): Seed and rank.
        endless (bool): Whether epochs follow each other within one iteration.
    """

    def __init__(self, batch_sampler: BatchSampler, stream: Sequence[int], endless: bool) -> None:
        self.batch_sampler, self.sampler = batch_sampler, batch_sampler.sampler
        self.stream, self.endless = stream, endless
        self.epoch = self.used = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Tuple[Tuple[int, ...], List[int]]]:
        epoch, used = self.epoch, self.used
        while True:
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            for number, batch in enumerate(self.batch_sampler):
                if used == 0:
                    yield (*self.stream, epoch, number), batch
                used = max(used - 1, 0)
            if not self.endless:
                return
            epoch += 1


class UnusedBatches:
    """What an iteration-based loop takes its batches from; those that were used are not among them.

    To get past them the loop of mmengine 0.10.7 takes as many as there were, and drops them; that of
    onedl-mmengine calls ``skip_iter``.
    """

    def __init__(self, loader: DataLoader, dropped: int) -> None:
        self.batches = chain(repeat(None, dropped), iter(loader))

    def __next__(self) -> Any:
        return next(self.batches)

    def skip_iter(self, number: int) -> None:
        pass


class Items:
    """A dataset's ``__getitems__`` whose errors name the file that they are about."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, batch: List[int]) -> list:
        return [self.load(index) for index in batch]

    def load(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            path = self.dataset.get_data_info(index).get('img_path', f'item {index}')
            raise RuntimeError(f'cannot load {path} with its annotations ({type(error).__name__}: {error}); '
                               'tools/check_dataset.py finds all such files') from error


class SeededItems(Items):
    """Loads a batch of :class:`ResumableBatches` with random numbers of its own."""

    def __call__(self, seeded_batch: Tuple[Tuple[int, ...], List[int]]) -> list:
        stream, batch = seeded_batch
        seed_everything(*stream)
        return super().__call__(batch)


def build_batch_sampler(cfg: Optional[ConfigDict], loader: DataLoader, seed: int) -> BatchSampler:
    """The batch sampler of a loader's config, as mmengine's Runner builds it. A Runner of arguments keeps no config:
    then that of the loader, with another seed."""
    if cfg is None:
        if hasattr(loader.batch_sampler.sampler, 'seed'):
            loader.batch_sampler.sampler.seed = seed
        return loader.batch_sampler
    sampler = DATA_SAMPLERS.build(cfg.sampler, default_args=dict(dataset=loader.dataset, seed=seed))
    if cfg.get('batch_sampler') is None:
        return BatchSampler(sampler, cfg.batch_size, cfg.get('drop_last', False))
    return DATA_SAMPLERS.build(cfg.batch_sampler,
                               default_args=dict(sampler=sampler, batch_size=cfg.batch_size))


def seed_everything(*stream: int) -> None:
    """Seeds Python, NumPy and PyTorch by a hash of some integers."""
    # With its length, since to SeedSequence (1, 2) and (1, 2, 0) are one.
    seed, = np.random.SeedSequence([len(stream), *stream]).generate_state(1)
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))


def from_first_process(make: Callable[[], list]) -> list:
    """What `make` returns in the first process, in all of them."""
    made = make() if is_main_process() else [None]
    broadcast_object_list(made)
    return made
