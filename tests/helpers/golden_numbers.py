"""Compares with the numbers that the official implementations give (tests/golden).

`cmt_logits.npz` is what the official classifiers (github.com/ggjy/CMT.pytorch, cmt.py, run in float64 with
today's timm layers and the head's dropout off) answer to images of their native size, with the formula's
weights: `<arch>/eval` and `<arch>/train` in those modes, and `<arch>/n_params`.
"""
import sys
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / 'golden'
sys.path.insert(0, str(FOLDER))
import weights  # noqa: E402


def formula_state(state, seed):
    """Every tensor of a state dict replaced by the golden formula's under that name."""
    return {key: torch.from_numpy(np.asarray(weights.value(key, tuple(value.shape), seed))).to(value.dtype)
            for key, value in state.items()}


def load(name):
    return dict(np.load(FOLDER / f'{name}.npz'))


def error(golden, prefix, tensor):
    """Relative error of the sampled elements of a tensor; checks the shape and the mean on the way."""
    values = tensor.detach().double().numpy()
    assert tuple(golden[f'{prefix}/shape']) == values.shape, prefix
    sampled = values.reshape(-1)[golden[f'{prefix}/idx']]
    expected = golden[f'{prefix}/val']
    return np.linalg.norm(sampled - expected) / np.linalg.norm(expected)


def images(golden):
    size = np.atleast_1d(golden['size'])
    shape = (int(golden['batch']), 3, int(size[0]), int(size[-1]))
    return torch.from_numpy(weights.image(shape, int(golden['seed']))).float()


def loss(outs, seed):
    """The scalar whose gradients the golden files hold."""
    return sum((out * torch.from_numpy(weights.image(tuple(out.shape), seed + 100 + i)).float()).mean()
               for i, out in enumerate(outs))
