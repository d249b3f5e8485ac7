"""What to run a model by on a CPU: this package as built and deployed, compiled, onnxruntime and OpenVINO.

    python benchmarks/runtimes.py --photos data/bccd/images

One image, random weights that give detectors something to find, a thread for each core. Each way runs in a process of
its own; those of a model take turns, so that a machine that slows down does so for all. Nothing else should run beside
them. Memory is the most that the process had, with its libraries; a file's has no PyTorch. Files of int8 have all their
layers in int8, with ranges found on the photos; bf16 is by autocast in PyTorch, and OpenVINO's own choice in OpenVINO.
"""
import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {'CMT-S': 'retinanet_cmt_s_1x', 'ConvNeXt-T': 'retinanet_convnext_t_1x'}
MODELS = [*CONFIGS, *(f'RetinaNet, {name}' for name in CONFIGS)]
WAYS = ['as built', 'deployed', 'compiled', 'timm', 'onnxruntime', 'OpenVINO', 'deployed, bf16', 'OpenVINO, bf16',
        'onnxruntime, int8', 'OpenVINO, int8']


def there_is(name: str, way: str) -> bool:
    """Whether a model can be run in a way."""
    if way == 'timm':
        return name == 'ConvNeXt-T'
    return name.startswith('RetinaNet') if way.endswith('int8') else True


def model_of(name: str, shape: tuple[int, int], deploy: bool = True):
    from export_all import random_model
    model = random_model(ROOT / f'configs/mmdet/{CONFIGS[name.split(", ")[-1]]}.py', shape, deploy)
    # Of random scores half are above the threshold, and mmdet sorts all that are; a trained detector leaves few.
    model.bbox_head.retina_cls.bias.data -= 10
    return model


def export(name: str, path: Path, shape: tuple[int, int], photos: list) -> None:
    """Writes a model's file, and for detectors one of int8."""
    from cmt_backbones.export import files
    from cmt_backbones.export.quantization import quantise
    say = partial(print, file=sys.stderr, flush=True)
    files.write(model_of(name, shape), path, files.Options(shape, backbone_only=name in CONFIGS), name, say)
    if there_is(name, 'onnxruntime, int8'):
        quantise(path, path.with_suffix('.int8.onnx'), photos, tolerance=float('inf'), measured=1, say=say)


def file_of(way: str, path: Path) -> Path:
    return path.with_suffix('.int8.onnx') if way.endswith('int8') else path


def of_file(way: str, path: Path, shape: tuple[int, int], threads: int):
    """A callable that runs a model's file once; nothing of PyTorch is imported."""
    spec = importlib.util.spec_from_file_location('predictor', ROOT / 'cmt_backbones/export/predictor.py')
    predictor = importlib.util.module_from_spec(spec)
    sys.modules['predictor'] = predictor
    spec.loader.exec_module(predictor)
    runtime, _, dtype = way.partition(', ')
    start = dict(onnxruntime=predictor.start_onnxruntime,
                 OpenVINO=partial(predictor.start_openvino, precision='bf16' if dtype == 'bf16' else 'f32'))[runtime]
    run, _ = start(str(file_of(way, path)), threads)
    return partial(run, np.random.default_rng(0).standard_normal((1, 3, *shape), dtype=np.float32))


def of_model(name: str, way: str, shape: tuple[int, int], threads: int):
    """A callable that runs a model of PyTorch once."""
    import torch

    from cmt_backbones.analysis.named_models import build, images, work
    torch.set_num_threads(threads)
    spec = 'timm/convnext_tiny:channels-last' if way == 'timm' else ''
    x = images(spec, 1, shape, torch.device('cpu'), torch.float32)
    if spec:
        return work(build(spec), x, False)
    model = model_of(name, shape, deploy=way != 'as built')
    if way == 'compiled':
        model.backbone.compile()
    run = work(model.backbone if name in CONFIGS else model, x, False)

    def run_once():
        with torch.autocast('cpu', torch.bfloat16, enabled=way.endswith('bf16')):
            return run()
    return run_once


def worker(name: str, way: str, path: Path, shape: tuple[int, int], threads: int) -> None:
    """Runs a model for each line that comes in, and prints seconds and the most memory so far."""
    from_file = way.startswith(('onnxruntime', 'OpenVINO'))
    run = of_file(way, path, shape, threads) if from_file else of_model(name, way, shape, threads)
    run()  # to warm up, and to compile
    print('ready', flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        status = Path('/proc/self/status').read_text()
        print(json.dumps([seconds, int(status.split('VmHWM:')[1].split()[0]) / 1e6]), flush=True)


class Worker:
    """A process that runs a model in one way, whenever it is asked to."""

    def __init__(self, name: str, way: str, options: list) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, '--worker', name, way, *options], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.seconds, self.gb = [], 0.
        self.works = self.answer() == 'ready'

    def answer(self) -> str:
        """The next line that is for us: libraries print some, too."""
        for line in self.process.stdout:
            if line.startswith(('ready', '[')):
                return line.strip()
        return ''

    def run(self) -> None:
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        seconds, self.gb = json.loads(self.answer())
        self.seconds.append(seconds)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def megabytes(way: str, path: Path) -> str:
    """The size of the file that is shipped, where there is one."""
    if not way.startswith(('onnxruntime', 'OpenVINO')):
        return ''
    path = file_of(way, path)
    return f'{sum(file.stat().st_size for file in path.parent.glob(path.name + "*")) / 1e6:.0f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', type=Path, help='folder of .jpg whose ranges files of int8 have')
    parser.add_argument('--models', nargs='+', default=MODELS, choices=MODELS)
    parser.add_argument('--ways', nargs='+', default=WAYS, choices=WAYS)
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1280], metavar=('H', 'W'))
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--folder', type=Path, help='where files are written, and taken from if they are there')
    parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape, folder = tuple(args.shape), args.folder or Path(tempfile.mkdtemp())
    if args.worker:
        name, way = args.worker
        return worker(name, way, folder / f'{MODELS.index(name)}.onnx', shape, args.threads)
    photos = sorted(args.photos.glob('*.jpg'))[:4] if args.photos else []
    if not photos and any(way.endswith('int8') for way in args.ways):
        parser.error('int8 needs --photos, a folder of .jpg')
    folder.mkdir(parents=True, exist_ok=True)
    options = [str(part) for part in ('--shape', *shape, '--threads', args.threads, '--folder', folder)]
    print(f'{__doc__}\n| model | way | ms (least to most) | of as built | GB | file, MB |\n|---|---|---|---|---|---|')
    for name in args.models:
        path = folder / f'{MODELS.index(name)}.onnx'
        if not path.exists():
            export(name, path, shape, photos)
        workers = {way: Worker(name, way, options) for way in args.ways if there_is(name, way)}
        for _ in range(args.rounds):
            for one in workers.values():
                if one.works:
                    one.run()
        reference = None
        for way, one in workers.items():
            one.end()
            if not one.works:
                print(f'| {name} | {way} | fails | | | |')
                continue
            ms = [seconds * 1e3 for seconds in one.seconds]
            median = statistics.median(ms)
            reference = reference or median
            print(f'| {name} | {way} | {median:.0f} ({min(ms):.0f} to {max(ms):.0f}) | {median / reference:.2f} | '
                  f'{one.gb:.2f} | {megabytes(way, path)} |', flush=True)


if __name__ == '__main__':
    main()
