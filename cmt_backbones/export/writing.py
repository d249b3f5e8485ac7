"""From a traced module to an ONNX file that says what it is.

torch.export traces the network for images that are normalised and padded already. What comes before, the
normalisation on request and the padding to multiples of 32, is put in front of it here as ONNX's own nodes: it
depends on sizes in ways that tracing cannot follow.
"""
import json
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from .predictor import ExportError
from .segmentors import replace_pooling

OPSET = 18
LARGEST = 1_900_000_000  # bytes of weights in one file; beyond 2 GB protobuf refuses
LEAST = 64  # of a side, where sizes are dynamic: torch.export takes a 1 of any dimension for a constant
STRIDE = 32
# Where sizes are dynamic: on each level of a pyramid, to stride 128, rows and columns are different numbers beyond 1.
# What happened to be equal would be taken for the same.
TRACED = 10 * STRIDE, 14 * STRIDE


def trace(module: nn.Module, shape: Sequence[int], dynamic: bool = False, dynamic_batch: bool = False,
          with_size: bool = False) -> torch.export.ExportedProgram:
    """The program of a module in eval mode.

    Args:
        module (nn.Module): Takes images, and where `with_size` is set what part of them is no padding.
        shape (Sequence[int]): N, height and width of the images.
        dynamic (bool): Whether it takes other sizes too, multiples of 32 from 64 on.
        dynamic_batch (bool): Whether it takes other numbers of images too.
    """
    batch, height, width = shape
    dims = {}
    if dynamic:
        replace_pooling(module)
        height, width = TRACED
        dims.update({2: STRIDE * torch.export.Dim('rows', min=2), 3: STRIDE * torch.export.Dim('columns', min=2)})
    if dynamic_batch:
        dims[0], batch = torch.export.Dim('batch', min=1), max(batch, 2)
    inputs = (torch.zeros(batch, 3, height, width), *([torch.tensor([height, width])] if with_size else []))
    shapes = (dims, *([None] if with_size else [])) if dims else None
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)


def convert(program: torch.export.ExportedProgram, outputs: Optional[List[str]] = None) -> 'torch.onnx.ONNXProgram':
    """The same in ONNX, in memory; the first input is called `images`."""
    try:
        import onnxruntime  # noqa: F401  (the check that follows needs it)
        import onnxscript  # noqa: F401  (torch.onnx needs it)

        from .operators import onnx_operators
    except ImportError as error:
        raise ExportError(f'{error.name} is missing: pip install onnx onnxscript onnxruntime') from None
    names = ['images', 'size'][:len(program.graph_signature.user_inputs)]
    written = torch.onnx.export(program, input_names=names, output_names=outputs, opset_version=OPSET,
                                custom_translation_table=onnx_operators(), verbose=False, optimize=False)
    tidy(written)
    written.optimize()
    return written


def tidy(written: 'torch.onnx.ONNXProgram') -> None:
    """Removes what is constant, unused or there twice, in place.

    onnxscript's optimizer does so too, but looks for its patterns first: two thirds of the nodes are gone by then.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.fold_constants(written.model)
    for step in (common.RemoveUnusedNodesPass(), common.LiftConstantsToInitializersPass(True, 0),
                 common.DeduplicateInitializersPass(), common.CommonSubexpressionEliminationPass()):
        step(written.model)


def put_in_front(written: 'torch.onnx.ONNXProgram', size: Sequence[int], dynamic: bool, divisor: int,
                 normalise: Optional[dict]) -> None:
    """Lets a file take images as they are instead of normalised and padded ones.

    Args:
        written (ONNXProgram): Of :func:`convert`; changed in place.
        size (Sequence[int]): Height and width of the images, where they are not dynamic.
        dynamic (bool): Whether it takes other sizes too.
        divisor (int): Zeros are put below and to the right until the sides divide by this.
        normalise (dict, optional): `mean`, `std` and `channel_order`: takes uint8 RGB images then.
    """
    import onnx_ir as ir
    from onnx_ir.convenience import replace_all_uses_with as replace

    graph = written.model.graph
    core, *rest = graph.inputs
    kind = ir.DataType.UINT8 if normalise else ir.DataType.FLOAT
    sides = ('height', 'width') if dynamic else size
    images = ir.Value(name='images', type=ir.TensorType(kind), shape=ir.Shape([core.shape[0], 3, *sides]))
    nodes: List[ir.Node] = []

    def constant(name: str, value: np.ndarray) -> 'ir.Value':
        out = ir.Value(name=name, const_value=ir.tensor(value, name=name))
        out.type, out.shape = ir.TensorType(out.const_value.dtype), ir.Shape(value.shape)
        graph.register_initializer(out)
        return out

    def apply(op_type: str, *inputs: 'ir.Value', **attributes: int) -> 'ir.Value':
        nodes.append(ir.node(op_type, inputs, attributes))
        nodes[-1].outputs[0].name = f'front_{op_type.lower()}_{len(nodes)}'
        return nodes[-1].outputs[0]

    x = images
    if normalise:
        x = apply('Cast', x, to=ir.DataType.FLOAT.value)
        if normalise['channel_order'] == 'BGR':
            x = apply('Gather', x, constant('front_order', np.array([2, 1, 0])), axis=1)
        for op_type, key in (('Sub', 'mean'), ('Div', 'std')):
            x = apply(op_type, x, constant(f'front_{key}', np.array(normalise[key], np.float32)[:, None, None]))
    if dynamic and rest:
        part = apply('Shape', images, start=2, end=4)
        missing = apply('Mod', apply('Neg', part), constant('front_divisor', np.array([divisor])))
        padded = apply('Max', apply('Add', part, missing), constant('front_least', np.array([LEAST])))
        pads = apply('Concat', constant('front_none', np.zeros(6, np.int64)), apply('Sub', padded, part), axis=0)
        x = apply('Pad', x, pads)
    else:
        part = constant('front_size', np.array(size)) if rest else None
        missing = [-side % divisor for side in size]
        if any(missing):
            x = apply('Pad', x, constant('front_pads', np.array([0] * 6 + missing)))
    if x is images:  # nothing is in front
        images = core
    else:
        replace(core, x)
    for old in rest:  # the size of the image
        replace(old, part)
    first = next(iter(graph))
    graph.insert_before(first, nodes)
    graph.inputs.clear()
    core.name = 'images' if images is core else 'unused'
    graph.inputs.append(images)


def round_weights(module: nn.Module) -> None:
    """Rounds the weights of a module to float16, in place, and leaves them float32."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            if tensor.abs().max() > torch.finfo(torch.float16).max:
                raise ExportError('a weight is too large for float16: leave out --fp16')
            if tensor.numel() > 1:  # the threshold of scores stays as it is
                tensor.data = tensor.data.half().float()


def store_half(written: 'torch.onnx.ONNXProgram') -> None:
    """Stores arrays that float16 holds exactly in it, and computes in float32 as before."""
    import onnx_ir as ir
    from onnx_ir.convenience import replace_all_uses_with as replace

    graph = written.model.graph
    first = next(iter(graph))
    for name, value in list(graph.initializers.items()):
        if value.dtype != ir.DataType.FLOAT or value.const_value.size < 256:
            continue
        array = value.const_value.numpy()
        half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        stored = ir.Value(name=f'{name}_half', const_value=ir.tensor(half, name=f'{name}_half'))
        stored.type, stored.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape(half.shape)
        graph.initializers.pop(name)
        graph.register_initializer(stored)
        node = ir.node('Cast', [stored], dict(to=ir.DataType.FLOAT.value))
        node.outputs[0].name = name
        replace(value, node.outputs[0])
        graph.insert_before(first, node)


def save(written: 'torch.onnx.ONNXProgram', path: Path, metadata: Dict[str, object]) -> List[Path]:
    """Writes a file, its weights beside it where they are beyond what one file holds, and says which."""
    from .. import __version__

    written.model.producer_name, written.model.producer_version = 'cmt_backbones', __version__
    for key, value in metadata.items():
        written.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    total = sum(value.const_value.nbytes for value in written.model.graph.initializers.values())
    beside = total > LARGEST
    written.save(str(path), external_data=beside)
    return [path, path.with_name(path.name + '.data')] if beside else [path]


def describe(model: nn.Module, config: str, size: Tuple[int, int], dynamic: bool, normalise: bool,
             **more: object) -> Dict[str, object]:
    """What the metadata of a file say; see docs/export.md.

    Args:
        model (nn.Module): As from ``cmt_backbones.openmmlab.inference.build_model``.
        config (str): The name of its config.
        size (tuple[int, int]): Height and width of the images that it was traced with.
        dynamic (bool): Whether it takes other sizes too.
        normalise (bool): Whether the file normalises.
        more: Of the task.
    """
    from .. import __version__

    front = model.data_preprocessor
    if getattr(front, 'mean', None) is None:
        raise ExportError('the data_preprocessor of the config has no mean and std, which a file states')
    # mmdet's and mmseg's name for the turn from OpenCV's order.
    turned = getattr(front, '_channel_conversion', getattr(front, 'channel_conversion', False))
    return dict(
        cmt_backbones=__version__, config=config, classes=list(model.dataset_meta['classes']),
        palette=[list(colour) for colour in model.dataset_meta.get('palette') or []],
        mean=front.mean.flatten().tolist(), std=front.std.flatten().tolist(),
        channel_order='RGB' if turned else 'BGR',
        input='uint8 RGB' if normalise else 'normalised float32', size=list(size), dynamic=dynamic,
        least=LEAST, resize=resize_rule(model.cfg), opset=OPSET, **more)


def resize_rule(cfg: dict) -> Optional[dict]:
    """How the test pipeline of a config resizes images: `scale` (width, height) and `keep_ratio`."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step['type'].rpartition('.')[2] == 'Resize' and step.get('scale'):
            return dict(scale=list(step['scale']), keep_ratio=bool(step.get('keep_ratio', False)))
    return None
