"""A run that is interrupted saves what it did, and one that resumes finds it."""
import logging
import os
import signal
import threading
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ..registration import register
from .finite_loss import any_process
from .resuming import from_first_process

INTERRUPTED = 'interrupted.pth'
SECONDS_TO_SAVE = 30  # which torchrun gives its processes too


@register(HOOKS, 'cmt_backbones.training.SaveOnSigterm')
class SaveOnSigterm(Hook):
    """Ends a run that gets SIGTERM, as when a scheduler wants its machine back, so that it can go on.

    All processes finish the iteration (where gradients accumulate, up to the next step), the first one
    saves ``interrupted.pth`` in the work dir, and all exit with code 143. SIGTERM in a validation breaks
    that off; the resumed run validates first. So does Ctrl-C, with code 130; a second Ctrl-C ends at once.

    A run that resumes without a file named goes on from the newest checkpoint of its work dir that is
    whole, with a warning for each that is not.
    """

    priority = 'LOWEST'  # the checkpoint holds what all other hooks did

    def __init__(self) -> None:
        self.requested = 0  # the number of the signal
        self.validation_due = False
        self.agreed = None  # whether a process is to end, where FiniteLossHook asked all in this iteration
        # Not at import: it adds to mmengine a backend for whole files and to PyTorch what resuming needs, and is
        # for runs that have this hook.
        from .. import openmmlab  # noqa: F401

    def before_run(self, runner: Runner) -> None:
        if not isinstance(runner._train_loop, BaseLoop):
            return  # a test; asking for the loop would build it
        loaders = [runner.train_dataloader] + ([runner.val_dataloader] if runner.val_loop else [])
        for loader in loaders:
            loader.worker_init_fn = partial(heed_own_process, loader.worker_init_fn)
        if runner._resume and runner._load_from is None:
            runner._load_from, = from_first_process(lambda: [newest_checkpoint(Path(runner.work_dir))])
            runner._resume = runner._load_from is not None
            if not runner._resume:
                runner.logger.warning(f'nothing to resume from in {runner.work_dir}: starting anew')
        if is_main_process():
            for left in Path(runner.work_dir).glob('.*.partial'):  # of a process killed while it wrote
                left.unlink()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.validation_due = runner._resume and checkpoint['meta'].get('validation_due', False)

    def before_train(self, runner: Runner) -> None:
        self.logger = runner.logger
        self.running = type(runner.train_loop).run.__code__
        self.previous = {number: signal.signal(number, self.request) for number in (signal.SIGTERM, signal.SIGINT)}
        if self.validation_due:
            runner.val_loop.run()

    def request(self, number: int, frame: Any) -> None:
        while frame and frame.f_code is not self.running:
            frame = frame.f_back
        if not frame:  # the run has ended with an error, which no hook is told, and its notebook goes on
            self.give_back_signals()
            signal.raise_signal(number)
            return
        self.requested = number
        if number == signal.SIGINT:
            for again in (signal.SIGINT, signal.SIGTERM):  # torchrun answers a second one with SIGTERM
                signal.signal(again, signal.SIG_DFL)
            self.logger.warning('Ctrl-C: finishing the iteration and saving; once more ends at once')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        agreed, self.agreed = self.agreed, None
        if agreed is None:
            agreed, = any_process(self.requested)
        if agreed and runner.optim_wrapper.should_update():
            self.stop(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        # Each process for itself: the processes need not have as many batches.
        if self.requested and runner.optim_wrapper.should_update():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # gives the model its own weights back
            self.stop(runner, dict(epoch=runner.epoch, iter=runner.iter, validation_due=True))

    def stop(self, runner: Runner, meta: dict) -> None:
        from ..openmmlab.files import BACKEND, WholeFiles
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, backend_args=dict(backend=BACKEND))
        if is_main_process():
            work_dir = Path(runner.work_dir)
            WholeFiles().put_text(str(work_dir / INTERRUPTED), work_dir / 'last_checkpoint')
        number = signal.Signals(self.requested or signal.SIGTERM)  # that of another process
        runner.logger.warning(f'{number.name}: saved {INTERRUPTED} at iteration {meta["iter"]}; --resume goes on')
        if not meta.get('validation_due'):
            barrier()  # a launcher ends the others when one has ended
        self.give_back_signals()
        raise SystemExit(128 + number)  # what a shell reports for a process that the signal ended

    def after_train(self, runner: Runner) -> None:
        self.give_back_signals()
        interrupted = Path(runner.work_dir) / INTERRUPTED
        if is_main_process() and last_checkpoint(interrupted.parent) != interrupted:
            interrupted.unlink(missing_ok=True)

    def give_back_signals(self) -> None:
        for number, previous in self.previous.items():
            signal.signal(number, previous)


def heed_own_process(worker_init_fn: Optional[Callable], worker_id: int) -> None:
    """A ``worker_init_fn``: a signal to all processes of a run is for those that train to answer.

    PyTorch's data workers end on any SIGTERM, and then their run with an error. One that comes from the
    process that a worker belongs to still ends it. Of Ctrl-C, which a terminal sends to all of them, the first
    is left to their run, too.
    """
    if worker_init_fn is not None:
        worker_init_fn(worker_id)
    signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.SIG_DFL))
    if hasattr(signal, 'pthread_sigmask'):  # not Windows, where there are no signals to heed
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=exit_with_own_process, daemon=True).start()


def exit_with_own_process() -> None:
    if hasattr(signal, 'sigwaitinfo'):
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
    else:  # macOS does not tell whose signal it is; by then a process that was to end with a checkpoint has
        signal.sigwait({signal.SIGTERM})
        time.sleep(SECONDS_TO_SAVE)
    os._exit(0)


def last_checkpoint(work_dir: Path) -> Optional[Path]:
    """What mmengine's note of the last checkpoint names."""
    note = work_dir / 'last_checkpoint'
    return Path(note.read_text(encoding='utf-8', errors='replace').strip()) if note.is_file() else None


def newest_checkpoint(work_dir: Path) -> Optional[str]:
    """The newest checkpoint of a work dir that a run can go on from.

    By the time that is noted in it: an earlier run in this folder may have got further, and copies of
    files have other times.
    """
    from ..openmmlab.checkpoints import read_run
    noted = last_checkpoint(work_dir)
    found = []
    for path in {*work_dir.glob('*.pth'), *([noted] if noted and noted.is_file() else [])}:
        try:
            content = read_run(str(path), 'cpu', mmap=True)  # the tensors stay on the disk
            if 'optimizer' in content:  # the best one is weights alone
                meta = content['meta']
                found.append((meta['time'], meta['iter'], path.name == INTERRUPTED, path))
        except (ValueError, KeyError, TypeError) as error:
            print_log(f'not resuming from {path}: {error}', 'current', logging.WARNING)
    for *_, path in sorted(found, reverse=True):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return str(path)
        print_log(f'not resuming from {path}: {damaged} in it is damaged', 'current', logging.WARNING)
    return None
