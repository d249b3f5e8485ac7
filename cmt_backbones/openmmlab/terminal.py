"""What a run shows on the terminal: what it is about to do, how it goes, what came out; all else is in its log."""
import logging
import os
import re
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from time import monotonic
from typing import Any, Dict, Iterator, Optional

from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from .matching import ModelError
from .processes import give_gradients_the_strides_of_parameters

# What others warn of and a user can do nothing about.
OF_OTHERS = (
    # mmengine 0.10.7 asks pkg_resources for versions; the set-up holds setuptools below the one that has it no longer.
    'pkg_resources is deprecated',
    # torch 2.11 copies the trees of a program that it exports itself, and warns of the leaves' class in them.
    '`isinstance(treespec, LeafSpec)` is deprecated',
    # mmengine's schedules go on while gradients accumulate, and torch takes that for a mistake.
    'Detected call of `scheduler.step()` before `optimizer.step()`')
LOGGED_OF_OTHERS = (
    # mmengine 0.10.7 still makes the file client that it calls deprecated, in its own hooks and data sets.
    r'"(FileClient|HardDiskBackend)"')
# Of mmengine and mmdet: the environment, the config, the hooks, the rate of each parameter, and notes.
IN_THE_LOG_ALONE = re.compile(
    r'\s*-{20}|Config:|Hooks will be executed|Distributed training is not used|Exp name:|paramwise_options|'
    r'(layer|stage)_wise decay|Checkpoints will be saved|The prefix is not set|'
    rf'Please make sure that the mlflow server|{LOGGED_OF_OTHERS}|Loads checkpoint by|Load checkpoint from|'
    r'Evaluating (bbox|segm)\.\.\.')
STEP = re.compile(r'loading ann|Loading and|Done|DONE|creating index|index created|Running per|Evaluate ann|Accumul|$')
RESULT = re.compile(r'(Epoch|Iter)\((val|test)\)(?!.* eta: )')


@contextmanager
def without_warnings_of_others() -> Iterator[None]:
    """Leaves out the warnings of :data:`OF_OTHERS` in a command, or around a call."""
    with warnings.catch_warnings():
        for message in OF_OTHERS:
            warnings.filterwarnings('ignore', re.escape(message))
        yield


class Brief(logging.Filter):
    """Passes what belongs on the terminal.

    Args:
        quiet: Leave out progress, too: what is left are warnings and the results of evaluations.
    """

    def __init__(self, quiet: bool) -> None:
        super().__init__()
        self.quiet = quiet

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if getattr(record, 'log_alone', False) or IN_THE_LOG_ALONE.match(message):
            return False
        return not self.quiet or record.levelno >= logging.WARNING or RESULT.match(message) is not None


class BriefRunner(Runner):
    """mmengine's Runner, with :class:`Brief` before the terminal; ``quiet=True`` in a config makes it quiet.

    Nor does DistributedDataParallel warn of the strides of gradients, on GPUs or CPUs.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if getattr(handler, 'stream', None) is sys.stdout:
                handler.addFilter(Brief(self.cfg.get('quiet', False)))
        return logger

    def _log_env(self, *args: Any, **kwargs: Any) -> None:
        with shells_unheard():  # mmengine asks for the version of the compiler that Python was built with
            super()._log_env(*args, **kwargs)

    def wrap_model(self, model_wrapper_cfg: Optional[Dict], model: nn.Module) -> nn.Module:
        if self.distributed:
            model = model.to(get_device())  # the hooks belong to the parameters there
            give_gradients_the_strides_of_parameters(model)
        return super().wrap_model(model_wrapper_cfg, model)

    def train(self) -> nn.Module:
        with without_warnings_of_others():
            return super().train()

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        try:
            with prints_in_the_log():
                return super().load_checkpoint(filename, *args, **kwargs)
        except (OSError, ValueError) as error:
            raise ModelError(f'cannot read the checkpoint {filename}: {error}') from None

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> DataLoader:
        with prints_in_the_log():
            return Runner.build_dataloader(*args, **kwargs)

    def build_evaluator(self, *args: Any, **kwargs: Any) -> Any:
        with prints_in_the_log():
            evaluator = super().build_evaluator(*args, **kwargs)
        evaluator.evaluate = prints_in_the_log()(evaluator.evaluate)
        return evaluator


@contextmanager
def shells_unheard() -> Iterator[None]:
    """What commands that are called meanwhile write to stderr (``gcc: not found``) is not seen."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextmanager
def prints_in_the_log() -> Iterator[None]:
    """What is printed goes into the log, and but for steps of pycocotools and IN_THE_LOG_ALONE to the terminal."""
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        logger, lines = MMLogger.get_current_instance(), printed.getvalue().strip().splitlines()
        for steps in (True, False):
            found = [line for line in lines if bool(STEP.match(line) or IN_THE_LOG_ALONE.match(line)) == steps]
            if found:
                logger.info('\n' + '\n'.join(found), extra=dict(log_alone=steps))


class Progress(Hook):
    """Tells what a run is about to do, logs its first iteration, and no less often than every so many seconds.

    mmengine's LoggerHook counts iterations, of which a CPU may take a minute for its 50.
    """

    priority = 'NORMAL'  # before LoggerHook

    def __init__(self, seconds: float = 20) -> None:
        self.seconds = seconds

    def before_train(self, runner: Runner) -> None:
        self.told, self.first = monotonic(), True
        self.hooks = [(hook, hook.interval) for hook in runner.hooks if isinstance(hook, LoggerHook)]
        runner.logger.info(summary(runner))
        runner.logger.info(f'log: {runner.logger.log_file}')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        due = self.first or monotonic() - self.told >= self.seconds
        self.first = False
        for hook, interval in self.hooks:
            hook.interval = 1 if due else interval
            if due or self.every_n_inner_iters(batch_idx, interval):
                self.told = monotonic()

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Any = None) -> None:
        for hook, interval in getattr(self, 'hooks', ()):
            hook.interval = interval


def summary(runner: Runner) -> str:
    """What a training is about to do, in one line."""
    loader, loop = runner.train_dataloader, runner.train_loop
    batch = runner.cfg.train_dataloader.batch_size
    processes = f' in each of {get_world_size()} processes' if get_world_size() > 1 else ''
    classes = getattr(loader.dataset, 'metainfo', {}).get('classes') or ()
    length = f'{loop.max_epochs} epochs of {len(loader)} iterations' if 'Epoch' in type(loop).__name__ else \
        f'{loop.max_iters} iterations'
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    device = next(model.parameters()).device
    return (f'{type(model).__name__} on {len(loader.dataset)} images of {len(classes)} classes: {length}, '
            f'{batch} images a step{processes}, on {device.type} by {type(runner.optim_wrapper).__name__}')


class LoggedImages(Hook):
    """Has mmdet's and mmseg's visualization hooks log some images of each validation.

    Args:
        images: How many, of as many batches.
    """

    priority = 'VERY_HIGH'

    def __init__(self, images: int = 8) -> None:
        self.images = images

    def before_val(self, runner: Runner) -> None:
        for hook in runner.hooks:
            if type(hook).__name__ in ('DetVisualizationHook', 'SegVisualizationHook'):
                hook.draw, hook.interval = True, max(1, len(runner.val_dataloader) // self.images)
