"""Exports a backbone or a whole segmentor: `python tools/export_onnx.py CONFIG [CHECKPOINT] --out FILE.onnx`.

What is exported takes normalised images (N, 3, H, W), float32, as the config's `data_preprocessor` gives
them. A backbone returns its maps, a segmentor the logits (N, classes, H, W) of one window or whole image.
With --dynamic it takes any height and width that 32 divides, from 64 on. FILE.pt2 saves the program of
torch.export instead. Either is run at once, at another size too where it is dynamic, and its outputs
must be those of the model to 1e-4 of their largest. A whole detector is a matter for mmdeploy.
"""
import argparse
import sys
from pathlib import Path
from typing import Callable, Optional

import torch
from mmengine.config import Config, DictAction
from torch import Tensor, nn

from cmt_backbones.models.backbone import switch_to_deploy
from cmt_backbones.openmmlab.inference import ModelError, build_model, read_config

TOLERANCE = 1e-4
Outputs = tuple[Tensor, ...]


class Segmentor(nn.Module):
    """The logits (N, classes, H, W) of a segmentor for normalised images (N, 3, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Outputs:
        return self.model.encode_decode(images, [dict(img_shape=images.shape[2:])]),


class AdaptiveAvgPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two products, since ONNX has no such pooling of maps of unknown size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (averages(side, out, x) for side, out in zip(x.shape[2:], self.size))
        return rows @ x @ columns.T


def averages(side: int, out: int, like: Tensor) -> Tensor:
    """The matrix (out, side) that averages `side` numbers in `out` cells, as adaptive pooling cuts them."""
    cell = torch.arange(out, device=like.device)[:, None]
    place = torch.arange(side, device=like.device)
    inside = (place >= cell * side // out) & (place < ((cell + 1) * side + out - 1) // out)
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def replace_pooling(module: nn.Module) -> None:
    """Puts :class:`AdaptiveAvgPool` in the place of PyTorch's, everywhere within a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
            setattr(module, name, AdaptiveAvgPool(size))
        else:
            replace_pooling(child)


def exportable(cfg: Config, checkpoint: Optional[str], backbone_only: bool, deploy: bool) -> nn.Module:
    """The part of a model that is exported: from a tensor to a tuple of tensors.

    Raises:
        ModelError: The config is of a whole detector, or there is no such model.
    """
    if cfg.default_scope != 'mmseg' and not backbone_only:
        raise ModelError('a whole detector is a matter for mmdeploy; --backbone-only exports what is ours')
    model = build_model(cfg, checkpoint)
    if deploy:
        switch_to_deploy(model)
    return (model.backbone if backbone_only else Segmentor(model)).requires_grad_(False)


def export(model: nn.Module, shape: tuple[int, int], dynamic: bool) -> torch.export.ExportedProgram:
    """The program of a model in eval mode for one image of a height and width.

    Args:
        dynamic: Whether it takes other sizes too, multiples of 32 from 64 on.
    """
    sizes = None
    if dynamic:
        replace_pooling(model)
        sizes = ({2: 32 * torch.export.Dim('rows', min=2), 3: 32 * torch.export.Dim('columns', min=2)}, )
    with torch.no_grad():
        return torch.export.export(model, (torch.zeros(1, 3, *shape), ), dynamic_shapes=sizes)


def save_onnx(program: torch.export.ExportedProgram, out: Path) -> Callable[[Tensor], Outputs]:
    """Writes a program as ONNX, weights included, and returns how onnxruntime runs the file."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ModelError(f'{error.name} is missing: pip install onnx onnxscript onnxruntime') from None
    torch.onnx.export(program, f=str(out), input_names=['images'], external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    return lambda x: tuple(map(torch.from_numpy, session.run(None, {'images': x.numpy()})))


def save_pt2(program: torch.export.ExportedProgram, out: Path) -> Callable[[Tensor], Outputs]:
    """Writes a program for torch.export.load and returns how the file runs."""
    torch.export.save(program, str(out))
    return torch.export.load(str(out)).module()


@torch.no_grad()
def difference(run: Callable[[Tensor], Outputs], model: nn.Module, shape: tuple[int, int]) -> float:
    """The largest difference of the outputs for a random image, over the largest output."""
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    worst = 0.
    for found, wanted in zip(run(image), model(image), strict=True):
        if found.shape != wanted.shape:
            return float('inf')
        worst = max(worst, ((found - wanted).abs().max() / wanted.abs().max()).item())
    return worst


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint', nargs='?', help='file or URL; random weights without one')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='.onnx or .pt2')
    parser.add_argument('--backbone-only', action='store_true', help='leave out neck and heads')
    parser.add_argument('--shape', type=int, nargs=2, default=[512, 512], metavar=('H', 'W'),
                        help='height and width of the images (default: 512 512)')
    parser.add_argument('--dynamic', action='store_true', help='take other sizes too, multiples of 32')
    parser.add_argument('--no-deploy', action='store_true', help='leave the backbone as it was trained')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for test.py')
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.onnx', '.pt2'):
        parser.error(f'--out must end in .onnx or .pt2, not {args.out}')
    least = 64 if args.dynamic else 32
    if min(args.shape) < least or args.dynamic and any(side % 32 for side in args.shape):
        parser.error(f'--shape takes at least {least} pixels, and with --dynamic multiples of 32, not '
                     f'{args.shape}')
    shape = tuple(args.shape)
    try:
        model = exportable(read_config(args.config, args.cfg_options), args.checkpoint, args.backbone_only,
                           not args.no_deploy)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save = save_onnx if args.out.suffix == '.onnx' else save_pt2
        print(f'tracing at {shape[0]}x{shape[1]}', flush=True)  # each of the two may take a minute
        program = export(model, shape, args.dynamic)
        print(f'writing {args.out}', flush=True)
        run = save(program, args.out)
    except (ModelError, OSError) as error:
        sys.exit(f'export_onnx: {error}')
    for height, width in [shape, (shape[0] + 32, shape[1] + 96)][:1 + args.dynamic]:
        error = difference(run, model, (height, width))
        print(f'{args.out} at {height}x{width}: differs from the model by {error:.1e} of the largest output')
        if not error <= TOLERANCE:
            sys.exit(f'export_onnx: that is more than {TOLERANCE:g}; do not use this file')


if __name__ == '__main__':
    main()
