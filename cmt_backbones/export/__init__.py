"""What leaves Python: backbones, detectors and segmentors as files, and running those files.

`load` needs NumPy and onnxruntime alone. The other modules write such files and need torch: `detectors` and
`segmentors` make a model traceable, `writing` makes the file, `verify` compares it with the model.
"""
from .predictor import Detections, ExportError, Predictor, Segmentation, load

__all__ = ['Detections', 'ExportError', 'Predictor', 'Segmentation', 'load']
