"""Exports the model of every config once, small and with random weights, and lets the export check it.

    python benchmarks/export_all.py --out work_dirs/export_all.json
    python benchmarks/export_all.py --out work_dirs/export_all.json --table

Each model in a process of its own, the smallest backbones first; what is done already is left out when the command
is given again. Configs that differ only in how or from what they train have the same model, which is exported once.
Files are removed after their check. Random weights give every anchor about the same score, or 1: those of the
layers that score and place boxes are scaled, so that there is an order to compare. To be quick, detectors return 20
boxes, of 100 proposals.
"""
import argparse
import importlib
import json
import multiprocessing
import re
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from cmt_backbones.export import files, verify, writing
from cmt_backbones.models.backbone import switch_to_deploy
from cmt_backbones.openmmlab.inference import build_model, read_config

ROOT = Path(__file__).resolve().parents[1]
# What of a model's settings does not change what it computes once it is trained, nor which weights it has then.
OF_TRAINING = {'init_cfg', 'train_cfg', 'auxiliary_head', 'drop_path_rate', 'dropout_ratio', 'frozen_stages',
               'norm_eval', 'with_cp'}
# The standard deviation of what random layers that score or place boxes say.
SPREAD = dict(retina_cls=2., rpn_cls=2., fc_cls=2., retina_reg=.3, rpn_reg=.3, fc_reg=.3)
SIZES = ['_v2_', '_atto', '_ti_', '_t_', '_xs_', '_s_', '_b_', '_l_', '_xl_']


def random_model(config: Path, shape: tuple[int, int], deploy: bool = True) -> nn.Module:
    """The model of a config with weights that find something in images of a size, folded as the command does."""
    torch.manual_seed(0)
    cfg = read_config(config, {'model.backbone.init_cfg': None})
    if 'rpn' in cfg.model.get('test_cfg', {}):
        cfg.model.test_cfg.rpn.max_per_img = 100  # regions cost the most, and a tenth of them shows as much
    model = build_model(cfg)
    if cfg.default_scope == 'mmdet':
        left = {module: SPREAD[name.rpartition('.')[2]] for name, module in model.named_modules()
                if name.rpartition('.')[2] in SPREAD}

        def scale(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            if module in left:  # the first time
                module.weight *= left.pop(module) / output.std()
            return module.forward(*inputs)

        hooks = [module.register_forward_hook(scale) for module in left]
        verify.predicted(model, files.images_of((), shape, 1))
        for hook in hooks:
            hook.remove()
    if deploy:
        switch_to_deploy(model)
    return model


def trained(settings: object) -> object:
    """The settings of a model without those of its training."""
    if isinstance(settings, dict):
        return {name: trained(value) for name, value in sorted(settings.items())
                if name not in OF_TRAINING and not name.startswith('loss_')}
    return [trained(value) for value in settings] if isinstance(settings, (list, tuple)) else settings


def what_is_exported(config: Path) -> str:
    """The same text for configs whose files are the same, but for their weights."""
    cfg = read_config(config)
    return json.dumps([trained(cfg.model.to_dict()), writing.resize_rule(cfg), cfg.test_dataloader.dataset.type])


def export(config: Path, shape: tuple[int, int], dynamic: bool, results: multiprocessing.Queue) -> None:
    """Puts the result of one config: CPU seconds of the steps, bytes, and what was said last."""
    laps, said = [('build', time.process_time())], []

    def say(text: str) -> None:
        laps.append((text.split()[0], time.process_time()))
        said.append(text)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        try:
            model = random_model(config, shape)
            files.write(model, path, files.Options(shape, dynamic, max_det=20), config.stem, say)
            ok = True
        except Exception as error:  # a row of the table, whatever it is
            ok, said = False, [f'{type(error).__name__}: {str(error).strip().splitlines()[0]}']
        laps.append(('end', time.process_time()))
        names = ['build', 'trace', 'write', 'check']
        spent = {name: round(after - before, 1) for name, (_, before), (_, after) in zip(names, laps, laps[1:])}
        written = sorted(Path(folder).glob('model.onnx*'))
        results.put(dict(ok=ok, cpu_seconds=spent, bytes=sum(file.stat().st_size for file in written),
                         files=len(written), said=re.sub(r'^\S*model\.onnx ', '', said[-1])))


def in_a_process(config: Path, shape: tuple[int, int], dynamic: bool, limit: float) -> dict:
    """The same from a process of its own, which is ended after `limit` seconds."""
    context = multiprocessing.get_context('fork')
    results, start = context.Queue(), time.time()
    process = context.Process(target=export, args=(config, shape, dynamic, results))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        return dict(ok=False, seconds=round(limit), said=f'stopped after {limit:g} seconds')
    if process.exitcode:
        return dict(ok=False, said=f'ended with {process.exitcode}')
    return dict(results.get(), seconds=round(time.time() - start))


def order(config: Path) -> tuple[int, str]:
    name = f'{config.stem}_'
    return max(i for i, size in enumerate(SIZES) if size in name or i == 0), name


def table(results: dict) -> str:
    """A row for each model, with all configs that have it."""
    rows = ['| configs | CPU seconds: build, trace, write, check | MB | files | check |', '|---|---|---|---|---|']
    for name, result in sorted(results.items()):
        if 'same_as' in result:
            continue
        names = [name] + sorted(other for other in results if results[other].get('same_as') == name)
        spent = ', '.join(f'{seconds:.0f}' for seconds in result.get('cpu_seconds', {}).values())
        rows.append(f'| {", ".join(names)} | {spent} | {result.get("bytes", 0) / 1e6:.0f} | '
                    f'{result.get("files", "")} | {"" if result["ok"] else "**fails**: "}{result["said"]} |')
    return '\n'.join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--shape', type=int, nargs=2, default=[64, 96])
    parser.add_argument('--dynamic', action='store_true', help='files for images of any size')
    parser.add_argument('--limit', type=float, default=900, help='seconds for a config (default: %(default)s)')
    parser.add_argument('--table', action='store_true', help='print what is there as a table')
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    if args.table:
        print(table(results))
        return
    configs = sorted([*ROOT.glob('configs/mmdet/*.py'), *ROOT.glob('configs/mmseg/*.py')], key=order)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # What is imported and built by a first export is there for all processes.
    for name in ('mmdet.models', 'mmseg.models', 'onnxruntime'):
        importlib.import_module(name)
    writing.convert(writing.trace(nn.Conv2d(3, 1, 1), (1, 32, 32)))
    models = {}
    for i, config in enumerate(configs):
        first = models.setdefault(what_is_exported(config), config.stem)
        if first != config.stem:
            results[config.stem] = dict(ok=results[first]['ok'], same_as=first)
        elif not results.get(config.stem, {}).get('ok'):
            results[config.stem] = in_a_process(config, tuple(args.shape), args.dynamic, args.limit)
        args.out.write_text(json.dumps(results, indent=1))
        print(f'{i + 1} of {len(configs)}: {config.stem} {results[config.stem]}', flush=True)


if __name__ == '__main__':
    main()
