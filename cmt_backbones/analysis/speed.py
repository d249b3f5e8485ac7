"""Time and memory of models, measured beside one another.

Models take turns, so that whatever else the machine does meets all of them, and a ratio of medians stands
where a time alone would not. Peak memory is measured in a process of its own for each model, above what the
loaded model takes. Beside them, the rate of a matrix product is measured, to tell how near to the machine's
limit a model is.
"""
import multiprocessing
import os
import platform
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..openmmlab.options import tf32
from .flops import count
from .named_models import build, images, work

HUGE_PAGES = 'THP_MEM_ALLOC_ENABLE'  # PyTorch's switch: its large arrays on CPUs lie in huge pages
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
SIDES = dict(cpu=2048, cuda=8192)  # of the matrices whose product is timed
Shape = Tuple[int, int]


@dataclass(frozen=True)
class Conditions:
    """What every model is measured under.

    Attributes:
        device: ``'cpu'`` or ``'cuda'``.
        dtype: One of DTYPES; to train, that of autocast.
        batch: Images at a time.
        train: Forward and backward instead of inference.
        threads: Of the CPU.
        repeats: Turns that each model takes.
        memory: Whether to measure the peak of memory.
    """
    device: str = 'cpu'
    dtype: str = 'float32'
    batch: int = 1
    train: bool = False
    threads: int = 1
    repeats: int = 5
    memory: bool = True


def measure(models: Sequence[str], shapes: Sequence[Shape], conditions: Conditions
            ) -> Tuple[List[dict], Dict[str, float]]:
    """All models, by their names in :mod:`.named_models`, at all sizes (height, width).

    Returns:
        tuple: For each size and model a dict with its ``name``, ``shape``, ``seconds`` (each repeat),
        ``median``, ``images_per_second``, ``gmacs`` (for one image, forward), ``peak_gb`` and, where it has
        the weights of the first model, ``difference`` to that model's maps. And GFLOP/s of
        :func:`products`, by name.

    Raises:
        ValueError: A name or option is unknown.
    """
    device = torch.device(conditions.device)
    flop, rates = products(device, DTYPES[conditions.dtype])
    cases = [dict(name=spec, shape=shape) for shape in shapes for spec in models]
    runs = {}
    for i, case in enumerate(tqdm(cases, desc='building, warming up', unit='model')):
        runs[i] = prepare(case['name'], case['shape'], conditions)
        with tf32(False):
            out = runs[i]()
        if i % len(models) == 0:
            reference = out
        elif same_weights(case['name'], models[0]) and not conditions.train:
            case['difference'] = difference(out, reference)
    times = {i: [] for i in [*runs, *rates]}
    for _ in tqdm(range(conditions.repeats), desc='measuring, in turns', unit='round'):
        for i, run in {**runs, **rates}.items():
            with tf32(True):  # as tools/train.py and tools/test.py compute
                times[i].append(timed(run, device))
    for i, case in enumerate(cases):
        median = statistics.median(times[i])
        case.update(seconds=times[i], median=median, images_per_second=conditions.batch / median)
    del runs
    for case in tqdm(cases, desc='multiply-adds', unit='model'):
        name, *options = case['name'].split(':')
        kept = ':'.join([name, *(o for o in options if o in ('plain', 'flat'))])
        case['gmacs'] = count(build(kept).to('meta'), case['shape'])['gmacs']
    if conditions.memory:
        with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
            for case in tqdm(cases, desc='memory', unit='model'):
                case['peak_gb'] = pool.apply(peak_memory, (case['name'], case['shape'], conditions))
    return cases, {name: flop / statistics.median(times[name]) / 1e9 for name in rates}


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a callable takes."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def products(device: torch.device, dtype: torch.dtype) -> Tuple[int, Dict[str, Callable[[], Tensor]]]:
    """The FLOP and the callables of one product, as matrices and as a 1x1 convolution.

    On CPUs oneDNN's kernels differ from MKL's.
    """
    n = SIDES[device.type]
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    pixels, weight = a[None, None].permute(0, 3, 1, 2), b[..., None, None]
    flop = 2 * n**3
    return flop, {'matrix product': lambda: a @ b, '1x1 convolution': lambda: torch.conv2d(pixels, weight)}


def prepare(spec: str, shape: Shape, conditions: Conditions) -> Callable[[], Any]:
    """A callable for one model and size."""
    device, dtype = torch.device(conditions.device), DTYPES[conditions.dtype]
    model = build(spec).to(device)
    x = images(spec, conditions.batch, shape, device, torch.float32 if conditions.train else dtype)
    if dtype != torch.float32 and not conditions.train:
        model = model.to(dtype)
    run = work(model, x, conditions.train)
    if dtype == torch.float32 or not conditions.train:
        return run

    def with_autocast() -> Any:  # as mmengine's --amp trains
        with torch.autocast(device.type, dtype):
            return run()
    return with_autocast


def peak_memory(spec: str, shape: Shape, conditions: Conditions) -> float:
    """GB that the work takes at most, above those of the loaded model and libraries."""
    torch.set_num_threads(conditions.threads)
    device, runs = torch.device(conditions.device), 1
    if device.type == 'cpu':
        prepare(spec, (64, 64), conditions)()  # loads what is loaded on first use
        runs = 3  # malloc leaves gaps, so that later runs take more than the first
    run = prepare(spec, shape, conditions)
    before, peak = start_of_peak(device)
    for _ in range(runs):
        run()
    return max(peak() - before, 0.)  # the kernel counts pages late: a small peak can lie below


def start_of_peak(device: torch.device) -> Tuple[float, Callable[[], float]]:
    """GB in use, of a GPU's memory or of this process, and a callable that tells the most from now on."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e9, lambda: torch.cuda.max_memory_allocated() / 1e9
    Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')
    return status('VmRSS') / 1e6, lambda: status('VmHWM') / 1e6


def status(field: str) -> int:
    """A number of kB from the kernel's books of this process."""
    return int(re.search(rf'{field}:\s+(\d+)', Path('/proc/self/status').read_text(encoding='utf-8'))[1])


def same_weights(name: str, other: str) -> bool:
    """Whether two forms of a backbone compute the same maps."""
    (family, *options), (family_of_other, *_) = name.split(':'), other.split(':')
    return family == family_of_other and 'flat' not in options and not Path(family).is_file()


def difference(out: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest relative difference between two tuples of maps."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(out, reference))


def environment(conditions: Conditions) -> Dict[str, Any]:
    """What a reader needs to know of the machine and the conditions."""
    cpuinfo = Path('/proc/cpuinfo')
    cpu = re.search(r'model name\s*: (.*)', cpuinfo.read_text(encoding='utf-8')) if cpuinfo.is_file() else None
    name = cpu[1] if cpu else platform.machine()
    env = dict(device=torch.cuda.get_device_name() if conditions.device == 'cuda' else name,
               threads=conditions.threads, torch=torch.__version__, dtype=conditions.dtype, batch=conditions.batch,
               work='training step' if conditions.train else 'inference', repeats=conditions.repeats)
    return dict(env, huge_pages='on') if os.environ.get(HUGE_PAGES) == '1' else env
