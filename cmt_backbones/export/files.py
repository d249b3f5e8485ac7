"""A model as a file, compared with the model before the call returns."""
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from ..data.shapes import scene
from . import predictor, verify, writing
from .detectors import detector, head_of
from .predictor import ExportError
from .segmentors import Backbone, Segmentor

OUTPUTS = ['boxes', 'scores', 'labels', 'masks']
STARTS = dict(onnxruntime=predictor.start_onnxruntime, OpenVINO=predictor.start_openvino)


@dataclass
class Options:
    """What is asked of a file.

    Args:
        shape (tuple[int, int], optional): Height and width of the images; by default what the config tests with.
        dynamic (bool): Whether it takes other sizes too.
        dynamic_batch (bool): Whether it takes several images at once.
        backbone_only (bool): Whether to leave out neck and heads.
        nms (bool): Whether a detector suppresses what overlaps.
        max_det (int, optional): How many boxes it returns.
        logits (bool): Whether a segmentor returns logits instead of classes.
        normalise (bool): Whether it takes uint8 RGB images and normalises them.
        fp16 (bool): Whether weights are rounded to float16 and stored so.
        openvino (bool): Whether to run the file by OpenVINO too.
        images (Sequence[ndarray]): What to compare on, (H, W, 3), uint8, RGB; drawn scenes by default.
    """
    shape: Optional[Tuple[int, int]] = None
    dynamic: bool = False
    dynamic_batch: bool = False
    backbone_only: bool = False
    nms: bool = True
    max_det: Optional[int] = None
    logits: bool = False
    normalise: bool = False
    fp16: bool = False
    openvino: bool = False
    images: Sequence[np.ndarray] = ()


def write(model: nn.Module, path: Path, options: Options, config: str = '',
          say: Callable[[str], None] = partial(print, flush=True)) -> None:
    """Writes a model as ONNX and compares what the file finds with what the model does.

    Args:
        model (nn.Module): As from ``cmt_backbones.openmmlab.inference.build_model``; --fp16 rounds its weights.
        path (Path): Where to; weights beyond 2 GB go to PATH.data.
        options (Options): What is asked of it.
        config (str): The name of the config, for the metadata.
        say: Told what is being done.

    Raises:
        ExportError: Something cannot be exported, is missing, or differs. No file is left behind.
    """
    kind = 'backbone' if options.backbone_only else model.cfg.default_scope
    if options.fp16:
        writing.round_weights(model)
    shape = options.shape or tested_shape(model, kind)
    check_shape(shape, options, kind)
    module = dict(backbone=lambda: Backbone(model), mmseg=lambda: Segmentor(model, options.logits),
                  mmdet=lambda: detector(model, options.max_det, options.nms))[kind]()
    divisor = 1
    if kind == 'mmdet':
        divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
        if options.dynamic and divisor % writing.STRIDE:
            raise ExportError(f'with --dynamic, pad_size_divisor must be {writing.STRIDE}, not {divisor}')
    padded = tuple(-(-side // divisor) * divisor for side in shape)
    say(f'tracing at {padded[0]}x{padded[1]}')  # each of the three may take a minute
    program = writing.trace(module.requires_grad_(False), (1, *padded), options.dynamic, options.dynamic_batch,
                            with_size=kind == 'mmdet')
    say(f'writing {path}')
    written = writing.convert(program, outputs_of(module, kind))
    del program
    front = writing.describe(model, config, shape, options.dynamic, options.normalise,
                             **about(model, module, kind, options)) if kind != 'backbone' else {}
    if kind != 'backbone':
        writing.put_in_front(written, shape, options.dynamic, divisor, front if options.normalise else None)
    if options.fp16:
        writing.store_half(written)
    made = writing.save(written, path, front)
    del written
    say(f'running {path}')
    try:
        for name, start in STARTS.items():
            if name == 'onnxruntime' or options.openvino:
                for said in compare(start, model, module, path, shape, options, kind, front):
                    say(f'{path} by {name} {said}')
    except ExportError:
        for file in made:
            file.unlink()
        raise


def write_program(model: nn.Module, path: Path, options: Options,
                  say: Callable[[str], None] = partial(print, flush=True)) -> None:
    """Writes the backbone of a model for torch.export.load, and compares it with the model."""
    shape = options.shape or (512, 512)
    check_shape(shape, options, 'backbone')
    module = Backbone(model).requires_grad_(False)
    say(f'tracing at {shape[0]}x{shape[1]}')
    torch.export.save(writing.trace(module, (1, *shape), options.dynamic), str(path))
    try:
        for said in compare_maps(torch.export.load(str(path)).module(), module, path, shape, options.dynamic):
            say(f'{path} {said}')
    except ExportError:
        path.unlink()
        raise


def tested_shape(model: nn.Module, kind: str) -> Tuple[int, int]:
    """The height and width that a config tests with: windows of a segmentor, and otherwise lying images."""
    rule = writing.resize_rule(model.cfg)
    crop = model.test_cfg.get('crop_size') if kind == 'mmseg' and model.test_cfg.mode == 'slide' else None
    if crop:
        return tuple(crop)
    return (min(rule['scale']), max(rule['scale'])) if rule and kind == 'mmdet' else (512, 512)


def check_shape(shape: Tuple[int, int], options: Options, kind: str) -> None:
    """Raises ExportError for sizes that no file can have."""
    least = writing.LEAST if options.dynamic else writing.STRIDE
    odd = options.dynamic and any(side % writing.STRIDE for side in shape)
    if min(shape) < least or (odd and options.shape and kind != 'mmdet'):
        raise ExportError(f'--shape takes at least {least} pixels, and with --dynamic multiples of '
                          f'{writing.STRIDE}, not {shape[0]} {shape[1]}')


def outputs_of(module: nn.Module, kind: str) -> Optional[List[str]]:
    if kind == 'mmdet':
        return OUTPUTS[:4 if getattr(module.model, 'with_mask', False) and hasattr(module, 'segment') else 3]
    return None if kind == 'backbone' else ['logits' if module.logits else 'labels']


def about(model: nn.Module, module: nn.Module, kind: str, options: Options) -> dict:
    """The part of the metadata that is of detectors or of segmentors."""
    if kind == 'mmdet':
        cfg = head_of(model).test_cfg
        out = dict(task='detection', multiple_of=1, score_threshold=cfg.score_thr, nms=options.nms,
                   iou_threshold=cfg.nms.iou_threshold, max_per_image=cfg.max_per_img)
        return dict(out, mask_threshold=cfg.mask_thr_binary) if hasattr(module, 'segment') and \
            model.with_mask else out
    out = dict(task='segmentation', multiple_of=writing.STRIDE, output='logits' if options.logits else 'labels')
    if model.test_cfg.mode == 'slide':
        out['windows'] = dict(size=list(model.test_cfg.crop_size), stride=list(model.test_cfg.stride))
    return out


def compare(start: Callable, model: nn.Module, module: nn.Module, path: Path, shape: Tuple[int, int],
            options: Options, kind: str, info: dict) -> List[str]:
    """Runs a file at sizes and says what was compared, or raises ExportError."""
    said = []

    def started(threshold: Optional[float] = None) -> Callable:
        try:
            return start(str(path), 0)[0] if threshold is None else at_threshold(start, path, threshold)
        except ImportError as error:
            raise ExportError(f'{error.name} is missing: pip install {error.name}') from None

    # A detector's is started once its threshold is known: two at a time would take twice the memory.
    run = started() if kind != 'mmdet' else None
    if kind == 'backbone':
        return compare_maps(lambda x: [torch.from_numpy(out) for out in run(x.numpy())], module, path, shape,
                            options.dynamic)
    for height, width in other_sizes(shape, kind) if options.dynamic else [shape]:
        images = images_of(options.images, (height, width), 2 + options.dynamic_batch)
        to_input = partial(input_of, info=info)
        if kind == 'mmseg':
            text = verify.check_segmentor(run, model, images, to_input, options.dynamic_batch, options.logits)
        else:
            text = verify.check_detector(started, model, images, to_input, options.dynamic_batch, options.nms)
        said.append(f'at {height}x{width}: {text}')
    return said


def compare_maps(run: Callable, module: nn.Module, path: Path, shape: Tuple[int, int], dynamic: bool) -> List[str]:
    """The same for the maps of a backbone."""
    said = []
    for height, width in [shape, (shape[0] + 32, shape[1] + 96)][:1 + dynamic]:
        error = verify.difference(run, module, (height, width))
        said.append(f'at {height}x{width}: differs from the model by {error:.1e} of the largest output')
        if not error <= 1e-4:
            raise ExportError(f'{path} {said[-1]}, and 1e-4 is allowed')
    return said


def other_sizes(shape: Tuple[int, int], kind: str) -> List[Tuple[int, int]]:
    """Two sizes that a file was not traced with; those of detectors, which pad, are odd."""
    height, width = shape
    if kind == 'mmdet':
        return [(height + 27, width + 85), (width - 3, height + 33)]
    return [(height + 32, width + 96), (width + 64, height)]


def images_of(images: Sequence[np.ndarray], size: Tuple[int, int], count: int) -> List[np.ndarray]:
    """Images (H, W, 3), uint8, BGR, of one size: drawn scenes where none are given."""
    if not len(images):
        return [scene(np.random.default_rng(seed), *size)[0] for seed in range(count)]
    return [np.ascontiguousarray(predictor.resize(images[i % len(images)], *size)[..., ::-1])
            for i in range(count)]


def input_of(images: Sequence[np.ndarray], info: dict) -> np.ndarray:
    """Images (H, W, 3), uint8, BGR, as a file takes them."""
    batch = np.stack(images).transpose(0, 3, 1, 2)  # (N, 3, H, W)
    if info['input'] == 'uint8 RGB':
        return np.ascontiguousarray(batch[:, ::-1])
    if info['channel_order'] == 'RGB':
        batch = batch[:, ::-1]
    mean, std = (np.array(info[name], np.float32)[:, None, None] for name in ('mean', 'std'))
    return ((batch - mean) / std).astype(np.float32)


def at_threshold(start: Callable, path: Path, threshold: float) -> verify.Run:
    """How a runtime runs a file at another threshold of scores, which is an array of the file."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    stored, = [array for array in model.graph.initializer if array.name == 'score_threshold']
    wanted = np.full(list(stored.dims), threshold, np.float32)
    if np.array_equal(onnx.numpy_helper.to_array(stored), wanted):
        return start(str(path), 0)[0]
    stored.CopyFrom(onnx.numpy_helper.from_array(wanted, 'score_threshold'))
    changed = path.with_name(f'{path.stem}.check.onnx')  # beside it, for weights that lie beside it
    try:
        onnx.save(model, str(changed))
        return start(str(changed), 0)[0]
    finally:
        changed.unlink()
