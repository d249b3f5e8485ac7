"""Exports the model of every config once, small and with random weights, and lets the command check it.

    python benchmarks/export_all.py --out work_dirs/export_all.json
    python benchmarks/export_all.py --out work_dirs/export_all.json --table

Each config in a process of its own, the smallest backbones first; what is done already is left out when the command
is given again. Files are removed after their check. Random weights give every anchor about the same score: those of
the layers that score are drawn wider, so that there is an order to compare.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZES = ['_v2_', '_atto', '_ti_', '_t_', '_xs_', '_s_', '_b_', '_l_', '_xl_']
CHECKPOINT = """
import sys, torch
from torch import nn
from cmt_backbones.openmmlab.inference import build_model, read_config
torch.manual_seed(0)
model = build_model(read_config(sys.argv[1], {'model.backbone.init_cfg': None}))
for name, module in model.named_modules():
    if name.endswith(('retina_cls', 'rpn_cls', 'fc_cls')):
        nn.init.normal_(module.weight, std=.05)
    if name.endswith(('retina_reg', 'rpn_reg')):
        nn.init.normal_(module.weight, std=.01)
meta = dict(dataset_meta=dict(classes=model.dataset_meta['classes'], palette=model.dataset_meta.get('palette')))
torch.save(dict(state_dict=model.state_dict(), meta=meta), sys.argv[2])
"""


def export(config: Path, shape: list[int], flags: list[str]) -> dict:
    """The result of one config: seconds, bytes, and what the command said last."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', '1'))
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / 'weights.pth', Path(folder) / 'model.onnx'
        made = subprocess.run([sys.executable, '-c', CHECKPOINT, str(config), str(weights)], env=env, text=True,
                              capture_output=True)
        if made.returncode:
            return dict(ok=False, said=made.stderr.strip().splitlines()[-1])
        start = time.time()
        done = subprocess.run([sys.executable, str(ROOT / 'tools/export_onnx.py'), str(config), str(weights), '--out',
                               str(out), '--shape', *map(str, shape), *flags, '--cfg-options',
                               'model.backbone.init_cfg=None'], env=env, text=True, capture_output=True)
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]
        files = sorted(Path(folder).glob('model.onnx*'))
        return dict(ok=done.returncode == 0, seconds=round(time.time() - start),
                    bytes=sum(file.stat().st_size for file in files), files=len(files),
                    said=re.sub(r'^\S*model\.onnx ', '', said))


def order(config: Path) -> tuple[int, str]:
    name = f'{config.stem}_'
    return max(i for i, size in enumerate(SIZES) if size in name or i == 0), name


def table(results: dict) -> str:
    rows = ['| config | seconds | MB | files | check |', '|---|---|---|---|---|']
    rows += [f'| {name} | {r.get("seconds", "")} | {r.get("bytes", 0) / 1e6:.0f} | {r.get("files", "")} | '
             f'{"" if r["ok"] else "**fails**: "}{r["said"]} |' for name, r in sorted(results.items())]
    return '\n'.join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--shape', type=int, nargs=2, default=[96, 128])
    parser.add_argument('--table', action='store_true', help='print what is there as a table')
    parser.add_argument('--flags', default='', help='more for the command, such as "--dynamic"')
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    if args.table:
        print(table(results))
        return
    configs = sorted([*ROOT.glob('configs/mmdet/*.py'), *ROOT.glob('configs/mmseg/*.py')], key=order)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for i, config in enumerate(configs):
        if not results.get(config.stem, {}).get('ok'):
            results[config.stem] = export(config, args.shape, args.flags.split())
            args.out.write_text(json.dumps(results, indent=1))
        print(f'{i + 1} of {len(configs)}: {config.stem} {results[config.stem]}', flush=True)


if __name__ == '__main__':
    main()
