"""Services that a run logs to, beside its files."""
import importlib.util
import os
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.visualization.vis_backend import MLflowVisBackend, force_init_env

from .matching import ConfigError

LOGGERS = dict(tensorboard=('TensorboardVisBackend', 'tensorboard'), wandb=('WandbVisBackend', 'wandb'),
               mlflow=('cmt_backbones.openmmlab.services.MLflow', 'mlflow'))


def log_to(cfg: Config, name: str) -> None:
    """Has a run log its scalars, and images of its validations, to a service.

    Without a server (MLFLOW_TRACKING_URI) MLflow keeps them in a database in the run's folder.

    Raises:
        ConfigError: Its package is not installed.
    """
    backend, package = LOGGERS[name]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f'--{name} needs the package {package}: pip install {package}')
    options = dict(type=backend)
    if name == 'mlflow':
        folder, server = Path(cfg.work_dir).resolve(), os.environ.get('MLFLOW_TRACKING_URI')
        options.update(exp_name=folder.name, tracking_uri=server or f'sqlite:///{folder}/mlflow.db',
                       artifact_location=None if server else (folder / 'mlflow').as_uri())
    cfg.visualizer.vis_backends = [*cfg.visualizer.get('vis_backends', []), options]


class MLflow(MLflowVisBackend):
    """mmengine's backend of MLflow, mended for mmengine 0.10.7 and MLflow 3.

    It names images without a suffix, by which MLflow knows their format, and those of all validations alike; and it
    ends with copies of all logs below the run's folder, where the copies of an earlier start lie.
    """

    @force_init_env
    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: int) -> None:
        self._mlflow.log_image(image, f'{name}_{step}.png')

    def close(self) -> None:
        if hasattr(self, '_mlflow'):
            for log in Path(self._save_dir).parent.glob('*.log'):
                self._mlflow.log_artifact(str(log))
            self._mlflow.end_run()
