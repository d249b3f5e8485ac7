"""An exported file in int8: onnxruntime's static quantisation, with what loses most left in float.

Convolutions and products with weights are quantised, weights for each channel; attention, norms, and what comes
after the heads stay in float. Which layers stay in float too is measured: each part of the network is quantised
alone, and those that change the heads' outputs most are left out until the rest changes them little enough.
"""
import ast
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from .predictor import ExportError, Image, Predictor, load, read_image, resize

KINDS = ('Conv', 'MatMul', 'Gemm')
Inputs = List[np.ndarray]


class Quantised(NamedTuple):
    """What was done to a file."""
    alone: Dict[str, float]  # of each part, how much it changes the outputs alone, the worst first
    kept: List[str]  # the parts that are left in float
    error: float  # how much the rest changes the outputs: norm of the change over the norm of the outputs
    layers: int  # that are quantised
    total: int  # that could be


def quantise(path: Path, out: Path, images: Sequence[Image], tolerance: float = .1, measured: int = 2,
             say: Callable[[str], None] = print) -> Quantised:
    """Writes a file in int8.

    Args:
        path (Path): A file of float32 weights, of tools/export_onnx.py.
        out (Path): Where to.
        images (Sequence[Image]): Photos like those that it will see: the ranges of values are theirs.
        tolerance (float): How much the outputs of the heads may change on them, relative to their norm.
        measured (int): On how many of them changes are measured.
        say: Told what is being done.

    Raises:
        ExportError: The file is not ours or of float16 weights, or a package is missing.
    """
    try:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ExportError(f'{error.name} is missing: pip install onnx onnxruntime') from None
    predictor = load(path)
    inputs = [input_of(predictor, image) for image in images]
    if not inputs:
        raise ExportError('there are no images to find the ranges of values by')
    prepared = out.with_name(f'{out.stem}.prepared.onnx')
    quant_pre_process(str(path), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    try:
        model = onnx.load(str(prepared))
        parts = parts_of(model)
        if not parts or any(array.data_type == onnx.TensorProto.FLOAT16 for array in model.graph.initializer):
            raise ExportError(f'{path} has no weights of float32 that could be quantised: export it without --fp16')
        ends = last_outputs(model, [name for names in parts.values() for name in names])
        say(f'finding the ranges of values on {len(inputs)} images')
        ranges = ranges_of(prepared, inputs)
        reference = outputs_at(model, ends, inputs[:measured])

        def error_of(names: Sequence[str]) -> float:
            return change(outputs_at(quantised_model(model, ranges, names), ends, inputs[:measured]), reference)

        alone = {}
        for part, names in parts.items():
            alone[part] = error_of(names)
            say(f'{part}: {alone[part]:.4f}')
        alone = dict(sorted(alone.items(), key=lambda item: -item[1]))
        for count in range(len(parts)):
            kept = list(alone)[:count]
            chosen = [name for part, names in parts.items() if part not in kept for name in names]
            error = error_of(chosen)
            say(f'{count} of {len(parts)} parts in float: {error:.4f}')
            if error <= tolerance:
                break
        final = quantised_model(model, ranges, chosen)
        final.metadata_props.add(key='int8', value=f'{len(chosen)} layers; in float: {", ".join(kept) or "none"}')
        onnx.save(final, str(out))
    finally:
        prepared.unlink()
    return Quantised(alone, kept, error, len(chosen), sum(map(len, parts.values())))


def seconds_of(paths: Sequence[Path], image: Image, rounds: int = 7, threads: int = 0) -> List[Tuple[float, float]]:
    """How long files take for an image: by the clock, and of processors; the median of some rounds.

    In each round each is run once, in turn, so that what else the machine does meets all of them.
    """
    predictors = [load(path, threads=threads) for path in paths]
    inputs = [input_of(predictor, image) for predictor in predictors]
    times: List[List[Tuple[float, float]]] = [[] for _ in paths]
    for turn in range(rounds + 1):
        for predictor, x, spent in zip(predictors, inputs, times):
            start = time.perf_counter(), time.process_time()
            predictor.run(x)
            if turn:  # the first is to warm up
                spent.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return [tuple(map(statistics.median, zip(*spent))) for spent in times]


def input_of(predictor: Predictor, image: Image) -> np.ndarray:
    """An image as a file takes it; of files that look through windows, one window of it."""
    image = read_image(image)
    windows = predictor.info.get('windows')
    if not windows:
        return predictor.prepare(image)[0]
    rows, columns = windows['size']
    return predictor.normalise(resize(image, *predictor.resized(*image.shape[:2]))[:rows, :columns], (rows, columns))


def parts_of(model: Any) -> Dict[str, List[str]]:
    """The names of nodes with weights, by the part of the network that they are of: a stage, the neck, a head."""
    weights = {array.name for array in model.graph.initializer}
    constants = weights | {node.output[0] for node in model.graph.node if node.op_type == 'Constant'}
    parts: Dict[str, List[str]] = {}
    for node in model.graph.node:
        if node.op_type in KINDS and node.input[1] in constants:
            parts.setdefault(part_of(node), []).append(node.name)
    return parts


def part_of(node: Any) -> str:
    """Such as 'backbone.stages.2' or 'bbox_head'."""
    scopes = [prop.value for prop in node.metadata_props if prop.key == 'pkg.torch.onnx.name_scopes']
    scopes = ast.literal_eval(scopes[0]) if scopes else []
    deepest = max([scope for scope in scopes if scope], key=len, default='model.rest')
    names = deepest.split('.')[1:]  # after the model itself
    return '.'.join(names[:3 if names[0] in ('backbone', 'roi_head') else 1])


def last_outputs(model: Any, names: Sequence[str]) -> List[str]:
    """The outputs of those named nodes that no other named node comes after, in their branch of the network.

    These are what the heads say, before boxes are decoded.
    """
    names = set(names)
    users: Dict[str, List[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    followed: Dict[str, bool] = {}  # of each array, whether a named node comes after it
    for node in reversed(model.graph.node):  # a file is in order
        followed[node.name] = any(user.name in names or followed[user.name]
                                  for output in node.output for user in users.get(output, []))
    return [node.output[0] for node in model.graph.node if node.name in names and not followed[node.name]]


class Reader:
    """Gives images to onnxruntime's calibration, one after the other."""

    def __init__(self, name: str, inputs: Inputs) -> None:
        self.left: Iterator[Dict[str, np.ndarray]] = iter([{name: x} for x in inputs])

    def get_next(self) -> Any:
        return next(self.left, None)


def ranges_of(path: Path, inputs: Inputs) -> Any:
    """Between which values each array of a file is, on some images."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    with_ranges = path.with_name(f'{path.stem}.ranges.onnx')
    try:
        calibrator = create_calibrator(str(path), KINDS, augmented_model_path=str(with_ranges),
                                       calibrate_method=CalibrationMethod.MinMax)
        calibrator.collect_data(Reader('images', inputs))
        return calibrator.compute_data()
    finally:
        for file in path.parent.glob(f'{with_ranges.name}*'):
            file.unlink()


def quantised_model(model: Any, ranges: Any, names: Sequence[str]) -> Any:
    """A copy of a model with the named nodes in int8."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy, per_channel=True, reduce_range=False, weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8, tensors_range=ranges, nodes_to_quantize=list(names),
        nodes_to_exclude=[], op_types_to_quantize=list(KINDS), extra_options=dict(WeightSymmetric=True))
    quantizer.quantize_model()
    return quantizer.model.model


def outputs_at(model: Any, names: Sequence[str], inputs: Inputs) -> List[Tuple[np.ndarray, ...]]:
    """Some arrays within a model, for each input."""
    import onnx
    import onnxruntime
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=['CPUExecutionProvider'])
    return [tuple(session.run(None, {'images': x})) for x in inputs]


def change(found: Sequence[Sequence[np.ndarray]], wanted: Sequence[Sequence[np.ndarray]]) -> float:
    """The norm of the change of arrays over their norm, averaged over arrays and images."""
    return float(np.mean([np.linalg.norm(a - b) / max(np.linalg.norm(b - b.mean()), 1e-9)
                          for one, other in zip(found, wanted) for a, b in zip(one, other)]))
