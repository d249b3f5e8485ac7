"""What to run a model by on a CPU: this package as built and deployed, compiled, onnxruntime and OpenVINO.

    python benchmarks/runtimes.py --photos data/bccd/images

One image, random weights that give detectors something to find, a thread for each core. Each way runs in a
process of its own, one after the other, so the machine should have nothing else to do. Memory is the most that the
process had, with its libraries. Files of int8 have all their layers in int8, with ranges found on the photos; bf16 is
by autocast in PyTorch, and OpenVINO's own choice in OpenVINO.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from export_all import ROOT, random_model

from cmt_backbones.analysis.named_models import build, images, work
from cmt_backbones.analysis.speed import status, timed
from cmt_backbones.export import files, predictor
from cmt_backbones.export.quantization import quantise

CONFIGS = {'CMT-S': 'retinanet_cmt_s_1x', 'ConvNeXt-T': 'retinanet_convnext_t_1x'}
MODELS = [*CONFIGS, *(f'RetinaNet, {name}' for name in CONFIGS)]
WAYS = ['as built', 'deployed', 'compiled', 'timm', 'onnxruntime', 'OpenVINO', 'as built, bf16', 'OpenVINO, bf16',
        'onnxruntime, int8', 'OpenVINO, int8']
say = partial(print, file=sys.stderr, flush=True)


def model_of(name: str, shape: tuple[int, int], deploy: bool = True) -> torch.nn.Module:
    return random_model(ROOT / f'configs/mmdet/{CONFIGS[name.split(", ")[-1]]}.py', shape, deploy)


def there_is(name: str, way: str) -> bool:
    """Whether a model can be run in a way."""
    if way == 'timm':
        return name == 'ConvNeXt-T'
    return name.startswith('RetinaNet') if way.endswith('int8') else True


def export(name: str, path: Path, shape: tuple[int, int], photos: list) -> None:
    """Writes a model's file, and for detectors one of int8."""
    options = files.Options(shape, backbone_only=name in CONFIGS)
    files.write(model_of(name, shape), path, options, name, say)
    if there_is(name, 'onnxruntime, int8'):
        quantise(path, path.with_suffix('.int8.onnx'), photos, tolerance=float('inf'), measured=1, say=say)


def prepare(name: str, way: str, path: Path, shape: tuple[int, int], threads: int):
    """A callable that runs a model once."""
    runtime, _, dtype = way.partition(', ')
    spec = 'timm/convnext_tiny:channels-last' if runtime == 'timm' else ''
    x = images(spec, 1, shape, torch.device('cpu'), torch.float32)
    if runtime in ('onnxruntime', 'OpenVINO'):
        path = path.with_suffix('.int8.onnx') if dtype == 'int8' else path
        run, metadata = dict(onnxruntime=predictor.start_onnxruntime,
                             OpenVINO=partial(predictor.start_openvino, precision='bf16' if dtype == 'bf16' else 'f32')
                             )[runtime](str(path), threads)
        return lambda: run(x.numpy())
    torch.set_num_threads(threads)
    if runtime == 'timm':
        return work(build(spec), x, False)
    model = model_of(name, shape, deploy=runtime != 'as built')
    if runtime == 'compiled':
        model.backbone.compile()
    run = work(model.backbone if name in CONFIGS else model, x, False)

    def run_once():
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bf16'):
            return run()
    return run_once


def worker(name: str, way: str, path: Path, shape: tuple[int, int], threads: int, repeats: int) -> None:
    """Prints, as JSON, the seconds of each turn and GB."""
    run = prepare(name, way, path, shape, threads)
    times = [timed(run, torch.device('cpu')) for _ in range(repeats + 1)]
    print(json.dumps(dict(seconds=times[1:], gb=status('VmHWM') / 1e6)))


def measure(name: str, way: str, folder: Path, options: list) -> dict:
    done = subprocess.run([sys.executable, __file__, '--worker', name, way, '--folder', str(folder), *options],
                          text=True, stdout=subprocess.PIPE)
    if done.returncode:
        return dict(error=done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def megabytes(way: str, path: Path) -> str:
    """The size of the file that is shipped, where there is one."""
    if not way.startswith(('onnxruntime', 'OpenVINO')):
        return ''
    path = path.with_suffix('.int8.onnx') if way.endswith('int8') else path
    return f'{sum(file.stat().st_size for file in path.parent.glob(path.name + "*")) / 1e6:.0f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', type=Path, help='folder of .jpg whose ranges files of int8 have')
    parser.add_argument('--models', nargs='+', default=MODELS, choices=MODELS)
    parser.add_argument('--ways', nargs='+', default=WAYS, choices=WAYS)
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1280], metavar=('H', 'W'))
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--folder', type=Path, help='where files are written, and taken from if they are there')
    parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape, folder = tuple(args.shape), args.folder or Path(tempfile.mkdtemp())
    if args.worker:
        name, way = args.worker
        return worker(name, way, folder / f'{MODELS.index(name)}.onnx', shape, args.threads, args.repeats)
    photos = sorted(args.photos.glob('*.jpg'))[:4] if args.photos else []
    if not photos and any(way.endswith('int8') for way in args.ways):
        parser.error('int8 needs --photos, a folder of .jpg')
    folder.mkdir(parents=True, exist_ok=True)
    options = [str(part) for part in ('--shape', *shape, '--threads', args.threads, '--repeats', args.repeats)]
    print(f'{__doc__}\n| model | way | ms | of as built | GB | file, MB |\n|---|---|---|---|---|---|')
    for name in args.models:
        path, reference = folder / f'{MODELS.index(name)}.onnx', None
        if not path.exists():
            export(name, path, shape, photos)
        for way in args.ways:
            if not there_is(name, way):
                continue
            result = measure(name, way, folder, options)
            if 'error' in result:
                print(f'| {name} | {way} | fails | | | |', flush=True)
                continue
            median = statistics.median(result['seconds'])
            reference = reference or median
            print(f'| {name} | {way} | {median * 1e3:.0f} | {median / reference:.2f} | {result["gb"]:.2f} | '
                  f'{megabytes(way, path)} |', flush=True)


if __name__ == '__main__':
    main()
