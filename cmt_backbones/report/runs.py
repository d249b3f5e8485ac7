"""A run as its work_dir tells it: config, curves, log, checkpoint, and how far it came."""
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from mmengine.config import Config

from ..openmmlab.inference import read_config
from ..openmmlab.matching import ModelError
from ..visualization.training_curves import Series, merge, read_scalars
from .errors import ReportError

EVERY_METRIC = r'^(?!(data_time|time|step|memory)$)'
PARTS = r'loss|^grad_norm$|^memory$|^time$'  # what is told of a training's lines beside its loss and learning rate
TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.MULTILINE)
# What mmengine writes into a log before a run starts.
ENVIRONMENT = {'Python': r'^ +Python: (\S+)', 'PyTorch': r'^ +PyTorch: (\S+)', 'MMEngine': r'^ +MMEngine: (\S+)',
               'TorchVision': r'^ +TorchVision: (\S+)'}


class Run(NamedTuple):
    """What is known of a run before its checkpoint is tried.

    `log` is the text of its logs, one after the other; `times` are the seconds of each start, `step_times` those of
    each logged iteration; `told` what the page should say of its state.
    """
    name: str
    work_dir: Path
    config: Config
    series: Series
    log: str
    times: List[float]
    step_times: List[float]
    checkpoint: Optional[Path]
    told: List[str]

    @property
    def task(self) -> str:
        return 'detector' if self.config.default_scope == 'mmdet' else 'segmentor'


def read_run(work_dir: Path, name: str, checkpoint: Optional[Path] = None, options: Optional[dict] = None) -> Run:
    """Reads a folder as `tools/train.py` leaves it, while it trains, too.

    Args:
        work_dir: Of the training.
        name: By which the page calls it.
        checkpoint: Instead of the run's best or last.
        options: Changes to its config.

    Raises:
        ReportError: It is no such folder, its config cannot be read, or there is no such checkpoint.
    """
    if not work_dir.is_dir():
        raise ReportError(f'there is no folder {work_dir}')
    folders = trainings(work_dir)
    file = find_config(work_dir, folders)
    if file is None:
        raise ReportError(f'{work_dir} is not the work_dir of a training: it has neither a config (*.py) nor a '
                          '<timestamp>/vis_data. Name the folder that tools/train.py --work-dir wrote')
    try:
        config = read_config(file, options)
    except (ModelError, ImportError) as error:
        raise ReportError(str(error)) from None
    series: Series = {}
    step_times: List[float] = []
    for folder in folders:
        text = (folder / 'vis_data' / 'scalars.json').read_text(encoding='utf-8')
        curves = read_scalars(text, EVERY_METRIC, PARTS)
        step_times += curves.pop(('time', 'iteration'), {}).values()
        series = merge(series, curves)
    logs = [path.read_text(encoding='utf-8', errors='replace') for folder in folders
            for path in sorted(folder.glob('*.log'))]
    found, told = find_checkpoint(work_dir, checkpoint)
    if found is None and not series:
        raise ReportError(f'{work_dir} has neither a logged training step nor a checkpoint yet: there is nothing to '
                          'tell. Wait for the first, or look into its log')
    told = [*state(config, series, work_dir), *told]
    return Run(name, work_dir, config, series, '\n'.join(logs), list(durations(logs)), step_times, found, told)


def trainings(work_dir: Path) -> List[Path]:
    """The folders of each time that a run was started, in order; those of tests have logged no loss."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))  # timestamps sort by time
    return [path.parent.parent for path in logs if '"loss"' in path.read_text(encoding='utf-8')]


def find_config(work_dir: Path, folders: List[Path]) -> Optional[Path]:
    """The config of the last training; a test into the same folder leaves its own beside the folder's."""
    for folder in reversed(folders):
        if (folder / 'vis_data' / 'config.py').is_file():
            return folder / 'vis_data' / 'config.py'
    beside = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return beside[-1] if beside else None


def find_checkpoint(work_dir: Path, named: Optional[Path]) -> Tuple[Optional[Path], List[str]]:
    """The checkpoint to evaluate, and what the page should say if there is none: named, best or last."""
    if named is not None:
        if not named.is_file():
            raise ReportError(f'there is no checkpoint {named}')
        return named, []
    best = sorted(work_dir.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    if best:
        return best[-1], []
    last = last_name(work_dir)
    if last and (work_dir / last).is_file():
        return work_dir / last, []
    others = sorted(work_dir.glob('*.pth'), key=lambda path: path.stat().st_mtime)
    if last:
        told = f'the checkpoint {last}, which the run names as its last, is gone'
    else:
        told = 'the run has no last_checkpoint'
    if others:
        return others[-1], [f'{told}: {others[-1].name} is evaluated']
    return None, [f'{told}, and there is no other: nothing could be evaluated']


def last_name(work_dir: Path) -> str:
    """The file name in `last_checkpoint`, whose folder may have been moved since."""
    path = work_dir / 'last_checkpoint'
    return re.split(r'[/\\]', path.read_text(encoding='utf-8').strip())[-1] if path.is_file() else ''


def state(config: Config, series: Series, work_dir: Path) -> List[str]:
    """Whether a run came to its end, and where it stands if not."""
    loop = config.get('train_cfg') or {}
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    logged = max(series.get(('loss', 'iteration'), {}), default=0)
    if not logged:
        return ['no training step was logged: there are no curves']
    saved = re.search(r'(epoch|iter)_(\d+)\.pth$', last_name(work_dir))
    if epochs:
        done = int(saved[2]) if saved and saved[1] == 'epoch' else 0
        done = max([done, *(step for (_, unit), curve in series.items() if unit == 'epoch' for step in curve)])
        if done < epochs:
            return [f'unfinished: {done} of {epochs} epochs are done and {logged} iterations are logged']
    elif iterations:
        interval = (config.get('default_hooks') or {}).get('logger', {}).get('interval', 10)
        done = max(int(saved[2]) if saved and saved[1] == 'iter' else 0, logged)
        if done + interval <= iterations:
            return [f'unfinished: {done} of {iterations} iterations are done']
    return []


def durations(logs: List[str]) -> Iterator[float]:
    """Seconds between the first and the last line of each log."""
    for text in logs:
        stamps = TIME.findall(text)
        if stamps:
            first, last = (datetime.strptime(stamp, '%Y/%m/%d %H:%M:%S') for stamp in (stamps[0], stamps[-1]))
            yield (last - first).total_seconds()


def facts(run: Run) -> Dict[str, str]:
    """What a run was, in words, by what a reader looks for; what is not known is left out."""
    config, log = run.config, run.log
    found: Dict[str, Optional[str]] = {
        'Config': config_name(run),
        'Model': model_name(config.model),
        'Backbone': backbone_name(config.model.backbone),
        'Initial weights': initial_weights(config),
        'Trained on': first(r'- INFO - \w+ on (\d+ images of \d+ classes: .*)$', log),
        'Optimizer': optimizer(config),
        'Seed': first(r'^ +seed: (\d+)', log) or first(r'numpy_random_seed: (\d+)', log),
        'Time': time_of(run),
        'Memory': memory_of(run),
        'Hardware': hardware(log),
        'Versions': ', '.join(f'{name} {value}' for name, value in
                              ((name, first(pattern, log)) for name, pattern in ENVIRONMENT.items()) if value),
        'Checkpoint': run.checkpoint.name if run.checkpoint else 'none',
    }
    return {name: value for name, value in found.items() if value}


def config_name(run: Run) -> str:
    """The config's own name, which mmengine's dump within `vis_data` has lost and the one beside it has kept."""
    return ', '.join(sorted(path.name for path in run.work_dir.glob('*.py'))) or 'config.py'


def first(pattern: str, text: str) -> Optional[str]:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else None


def model_name(model: Any) -> str:
    """A detector's type; of a segmentor, whose types are few, that of its head."""
    head = model.get('decode_head')
    return f"{model.get('type')} with {head['type']}" if hasattr(head, 'get') else str(model.get('type'))


def backbone_name(backbone: Any) -> str:
    arch = backbone.get('arch', backbone.get('depth', ''))
    return f"{backbone.get('type', '?')} {arch if isinstance(arch, (str, int)) else 'of its own sizes'}".strip()


def initial_weights(config: Config) -> str:
    if config.get('load_from'):
        return str(config.load_from)
    init = config.model.backbone.get('init_cfg') or {}
    return str(init.get('checkpoint', 'from scratch')) if hasattr(init, 'get') else 'from scratch'


def optimizer(config: Config) -> Optional[str]:
    wrapper = config.get('optim_wrapper') or {}
    options = wrapper.get('optimizer') or {}
    if not options:
        return None
    parts = [str(options.get('type'))] + [f'{word} {options[key]:g}' for key, word in (
        ('lr', 'learning rate'), ('weight_decay', 'weight decay')) if isinstance(options.get(key), (int, float))]
    if 'Amp' in str(wrapper.get('type')):
        parts.append(f"mixed precision ({wrapper.get('dtype', 'float16')})")
    return ', '.join(parts)


def time_of(run: Run) -> Optional[str]:
    if not run.times:
        return None
    told = spell(sum(run.times)) + (f' in {len(run.times)} starts' if len(run.times) > 1 else '')
    if not run.step_times:
        return told
    return f'{told}, {sorted(run.step_times)[len(run.step_times) // 2]:.3g} s an iteration (median)'


def spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s' if minutes else f'{rest} s'


def memory_of(run: Run) -> str:
    peak = max(run.series.get(('memory', 'iteration'), {0: 0}).values())
    return f'{peak / 1024:.1f} GiB at its peak on the first GPU' if peak else 'not logged (mmengine logs that of GPUs)'


def hardware(log: str) -> Optional[str]:
    gpus = first(r'^ +GPU [\d,]+: (.+)$', log)
    count = first(r'^ +GPU number: (\d+)', log)
    if gpus:
        return f'{count} x {gpus}' if count and count != '1' else gpus
    processes = f', {count} processes' if count and count != '1' else ''
    return f'CPU{processes}' if log else None
