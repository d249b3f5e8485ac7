"""What a run predicts for the images it was validated on: by its checkpoint, or from files of `tools/test.py --out`."""
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..openmmlab.inference import build_model
from ..openmmlab.matching import ModelError
from ..visualization import detections, segmentation
from ..visualization.panels import DrawingError
from .errors import ReportError, reason
from .runs import Run


class Data(NamedTuple):
    """The images that a run is evaluated on: places `indices` of a data set of mmdet or mmseg."""
    dataset: Any
    split: str
    indices: List[int]

    @property
    def classes(self) -> List[str]:
        return list(self.dataset.metainfo['classes'])


def read_data(run: Run, split: str, max_images: Optional[int] = None) -> Data:
    """The data set of a run's validation or test, of which every so manieth image is taken if there are more.

    Raises:
        ReportError: The config has none, or it is not where the config says.
    """
    config = run.config
    split = split if config.get(f'{split}_dataloader') else 'test'
    if not config.get(f'{split}_dataloader'):
        raise ReportError(f'{run.name}: its config has no val_dataloader and no test_dataloader to evaluate on; '
                          '--curves-only leaves that out')
    init_default_scope(config.default_scope)
    hint = ('Start in the folder it was trained in, say where they are now by --cfg-options '
            f'{split}_dataloader.dataset.data_root=..., or leave the evaluation out by --curves-only')
    try:
        with redirect_stdout(StringIO()):  # of pycocotools
            dataset = DATASETS.build(config[f'{split}_dataloader'].dataset)
            dataset.full_init()
    except OSError as error:
        raise ReportError(f'{run.name}: its {split} data are gone: {error.filename or error}. {hint}') from None
    if not len(dataset):
        raise ReportError(f'{run.name}: its {split} data have no image. {hint}')
    count = min(len(dataset), max_images or len(dataset))
    return Data(dataset, split, np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist())


class Careful(Dataset):
    """A data set's items, with their place; of those that cannot be read, why."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.indices)

    def __getitem__(self, i: int) -> Tuple[int, Any]:
        place = self.data.indices[i]
        try:
            return place, self.data.dataset[place]
        except Exception as error:  # decoders and transforms have no common class of errors
            return place, reason(error)


@torch.no_grad()
def predict(run: Run, data: Data, device: str) -> Iterator[Tuple[int, Any]]:
    """Runs a checkpoint over a data set, in the batches of the config.

    Yields:
        tuple: The place of an image in the data set, and its sample as mmdet or mmseg predicts it; or a text that
        says why the image cannot be read.
    """
    loader = run.config[f'{data.split}_dataloader']
    try:
        model = build_model(run.config, str(run.checkpoint), device)
    except ModelError as error:
        raise ReportError(f'{run.name}: {error}') from None
    except (RuntimeError, AssertionError) as error:  # of PyTorch, for a device that is not there
        raise ReportError(f'{run.name}: the model cannot be put on {device!r}: {reason(error)}') from None
    batches = DataLoader(Careful(data), loader.get('batch_size', 1), num_workers=loader.get('num_workers', 0),
                         collate_fn=list)
    with tqdm(total=len(data.indices), desc=f'evaluating {run.name}', unit='image', mininterval=1) as bar:
        for batch in batches:
            whole = [(place, item) for place, item in batch if not isinstance(item, str)]
            yield from ((place, item) for place, item in batch if isinstance(item, str))
            if whole:
                samples = model.test_step(pseudo_collate([item for _, item in whole]))
                yield from zip([place for place, _ in whole], samples)
            bar.update(len(batch))


def detector_predictions(run: Run, data: Data, device: str, file: Optional[Path]
                         ) -> Tuple[Dict[int, dict], Dict[str, str]]:
    """What a detector finds in each image.

    Returns:
        tuple: By the place of an image in the data set, a dict with `bboxes` (n, 4) as x1, y1, x2, y2 in pixels,
        `scores` (n,), `labels` (n,) and, of instance segmentation, `masks`, n run-length codes; and by the path of
        each image that cannot be read, why.
    """
    infos = {place: data.dataset.get_data_info(place) for place in data.indices}
    if file is not None:
        return from_file(run, data, infos, file), {}
    found, broken = {}, {}
    for place, sample in predict(run, data, device):
        if isinstance(sample, str):
            broken[infos[place]['img_path']] = sample
        else:
            found[place] = arrays(sample.pred_instances)
    if not found:
        path, why = next(iter(broken.items()))
        raise ReportError(f'{run.name}: none of its {len(broken)} {data.split} images can be read: {path} ({why}). '
                          '--curves-only leaves the evaluation out')
    return found, broken


def arrays(instances: Any) -> dict:
    """Instances of mmdet, or of its DumpDetResults, as NumPy arrays."""
    found = dict(bboxes=np.asarray(instances['bboxes'].cpu(), float).reshape(-1, 4),
                 scores=np.asarray(instances['scores'].cpu(), float),
                 labels=np.asarray(instances['labels'].cpu(), int))
    if 'masks' in instances:
        masks = instances['masks']
        if isinstance(masks, torch.Tensor):
            masks = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks.cpu().numpy()]
        found['masks'] = list(masks)
    return found


def from_file(run: Run, data: Data, infos: Dict[int, dict], file: Path) -> Dict[int, dict]:
    """The predictions in a file of `tools/test.py --out`, if they are of this data set."""
    try:
        predictions = {prediction.get('img_id'): prediction for prediction in detections.read_predictions(file)}
    except (DrawingError, OSError) as error:
        raise ReportError(f'{run.name}: {error}') from None
    found = {}
    for place, info in infos.items():
        prediction = predictions.get(info['img_id'], {})
        there = Path(prediction.get('img_path', info['img_path'])).name == Path(info['img_path']).name
        if 'pred_instances' not in prediction or not there:
            raise ReportError(f"{run.name}: {file} has nothing on {info['img_path']} (image {info['img_id']}): it is "
                              f'of another data set than the {data.split} data of the config. --split chooses these')
        found[place] = arrays(prediction['pred_instances'])
        if found[place]['labels'].max(initial=-1) >= len(data.classes):
            raise ReportError(f'{run.name}: {file} has more than the {len(data.classes)} classes of the config')
    return found


def segmentor_predictions(run: Run, data: Data, device: str, folder: Optional[Path]
                          ) -> Iterator[Tuple[dict, Any]]:
    """What a segmentor sees in each image.

    Yields:
        tuple: What the data set knows of an image; and its labels (H, W), uint8, or a text that says why it cannot
        be read.
    """
    if folder is None:
        for place, sample in predict(run, data, device):
            labels = sample if isinstance(sample, str) else sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
            yield data.dataset.get_data_info(place), labels
        return
    for place in tqdm(data.indices, f'evaluating {run.name}', unit='image', mininterval=1):
        info = data.dataset.get_data_info(place)
        path = folder / f"{Path(info['img_path']).stem}.png"
        try:
            yield info, segmentation.read_prediction(path, data.dataset.reduce_zero_label)
        except (DrawingError, OSError) as error:
            raise ReportError(f'{run.name}: {error}') from None
