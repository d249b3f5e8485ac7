"""Runs of a small detector and a small segmentor, and a detector's predictions that are wrong in known ways."""
import copy
import json
import pickle

import numpy as np
import pytest
import torch

import small_runs
from cmt_backbones.data import shapes as drawn_scenes


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """9 images to train on and 8 to validate on, with their truth as COCO's file says it."""
    return small_runs.draw(tmp_path_factory.mktemp('scenes') / 'data', val=8)


@pytest.fixture(scope='session')
def detector_run(scenes, tmp_path_factory):
    """The work_dir of RetinaNet, 2 epochs, validated after each, and `predictions.pkl` of mmdet's own test of it."""
    from mmdet.evaluation import DumpDetResults
    cfg = small_runs.detector(scenes, tmp_path_factory.mktemp('detector') / 'small_retinanet', workers=0)
    cfg.default_hooks.logger.interval = 1
    cfg.model.test_cfg.score_thr = 0.
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    small_runs.train(cfg)
    work_dir = small_runs.Path(cfg.work_dir)
    cfg.update(load_from=str(work_dir / 'epoch_2.pth'), work_dir=f'{work_dir}/test', custom_hooks=[])
    cfg.experiment_name = cfg.visualizer.name = f'{cfg.experiment_name}_test'
    runner = small_runs.Runner.from_cfg(cfg)
    runner.test_evaluator.metrics.append(DumpDetResults(str(work_dir / 'predictions.pkl')))
    runner.test()
    return work_dir


@pytest.fixture(scope='session')
def segmentor_run(scenes, tmp_path_factory):
    """The work_dir of UperNet, 7 iterations, validated at the end."""
    cfg = small_runs.segmentor(scenes, tmp_path_factory.mktemp('segmentor') / 'small_upernet', workers=0)
    cfg.default_hooks.logger.interval = 1
    cfg.val_dataloader.batch_size = 1  # the scenes have two sizes
    small_runs.train(cfg)
    return small_runs.Path(cfg.work_dir)


def spoil(boxes, labels, rng):
    """Detections of objects: moved, of other classes, twice, missed, and one of nothing; scores that differ."""
    found, classes, scores = [], [], []
    for box, label in zip(boxes, labels):
        for copy_ in range(int(rng.choice([0, 1, 1, 1, 2]))):
            size = np.tile(box[2:] - box[:2], 2)
            found.append(box + size * rng.normal(0, rng.choice([.01, .08, .3]), 4))
            classes.append(label if rng.random() < .75 else rng.integers(len(drawn_scenes.CLASSES)))
            scores.append(rng.uniform(.2, .99) / (copy_ + 1))
    found.append([1, 1, 12, 12])
    return np.array([*found], float), np.array([*classes, 0]), np.array([*scores, rng.uniform(.05, .6)])


@pytest.fixture(scope='session')
def wrong_predictions(scenes, tmp_path_factory):
    """A file as of `tools/test.py --out`, whose detections are the truth spoiled."""
    coco = json.loads((scenes / 'annotations/val.json').read_text())
    rng, predictions = np.random.default_rng(5), []
    for image in coco['images']:
        own = [one for one in coco['annotations'] if one['image_id'] == image['id']]
        boxes = np.array([one['bbox'] for one in own], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes, labels, scores = spoil(boxes, [one['category_id'] - 1 for one in own], rng)
        predictions.append(dict(
            img_id=image['id'], img_path=f"images/val/{image['file_name']}",
            ori_shape=(image['height'], image['width']),
            pred_instances=dict(bboxes=torch.tensor(boxes).float(), labels=torch.tensor(labels),
                                scores=torch.tensor(scores).float())))
    path = tmp_path_factory.mktemp('predictions') / 'wrong.pkl'
    path.write_bytes(pickle.dumps(predictions))
    return path


@pytest.fixture
def copied(tmp_path):
    """Copies a work_dir, to spoil it."""
    import shutil
    return lambda work_dir: copy.copy(shutil.copytree(work_dir, tmp_path / work_dir.name))
