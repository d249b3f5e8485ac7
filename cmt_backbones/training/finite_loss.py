"""A loss that is not finite ends a run before it reaches the weights."""
from functools import partial
from typing import Any, Callable, List, Sequence, Union

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..registration import register


@register(HOOKS, 'cmt_backbones.training.FiniteLossHook')
class FiniteLossHook(Hook):
    """Ends a run whose loss is infinite or not a number, before that reaches the weights.

    The error tells the iteration, each term of the loss, and the images of the batch.

    Args:
        max_skipped (int): So many batches in a run are left out instead, with a warning.
    """

    def __init__(self, max_skipped: int = 0) -> None:
        self.max_skipped, self.skipped = max_skipped, 0
        self.terms, self.batch = {}, None

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.register_forward_hook(self.keep_terms)
        wrapper = runner.optim_wrapper
        wrapper.update_params = partial(self.update_if_finite, runner, wrapper.update_params)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.batch = data_batch

    def keep_terms(self, model: nn.Module, args: Any, output: Any) -> None:
        if model.training and isinstance(output, dict):
            self.terms = output

    def update_if_finite(self, runner: Runner, update_params: Callable, loss: Tensor, **kwargs: Any) -> None:
        terms, self.terms = self.terms, {}  # kept no longer than the graph of the batch
        finite = loss.isfinite().all()
        # All processes turn back before the backward pass, in which they would wait for each other. Whether
        # one is to end (SaveOnSigterm) is told in the same exchange, with one wait for the GPU.
        to_end = [hook for hook in runner.hooks if hasattr(hook, 'requested')]
        not_finite, *requested = any_process(~finite, *(hook.requested for hook in to_end))
        for hook, value in zip(to_end, requested):
            hook.agreed = value
        if not not_finite:
            return update_params(loss, **kwargs)
        told = all_gather_object('' if finite else self.describe(terms))
        self.skipped += 1
        message = (f'the loss of iteration {runner.iter + 1} is not finite: '
                   + '; '.join(filter(None, told)))
        if self.skipped > self.max_skipped:
            raise FloatingPointError(
                f'{message}. The weights are as they were before it. Look at these images and at the '
                f'learning rate; FiniteLossHook(max_skipped={self.skipped}) in custom_hooks would leave the '
                'batch out')
        runner.logger.warning(f'{message}; left out, {self.skipped} of at most {self.max_skipped}')

    def describe(self, terms: dict) -> str:
        parts = {name: term if isinstance(term, Sequence) else [term] for name, term in terms.items()}
        values = {name: float(sum(part.detach().mean() for part in term)) for name, term in parts.items()}
        samples = self.batch.get('data_samples', []) if isinstance(self.batch, dict) else []
        images = [str(sample.metainfo.get('img_path')) for sample in samples]
        return (f'process {get_rank()} has '
                + ', '.join(f'{name} {value:.4g}' for name, value in values.items())
                + f' for {", ".join(images) or "a batch without img_path"}')


def any_process(*flags: Union[bool, Tensor]) -> List[bool]:
    """Whether each of the flags is set in one of the processes; all of them must ask, at the same time."""
    device = next((flag.device for flag in flags if isinstance(flag, Tensor)), None)
    all_flags = torch.stack([flag.float() if isinstance(flag, Tensor) else torch.full((), float(flag), device=device)
                             for flag in flags])
    if get_world_size() > 1:
        all_reduce(all_flags, 'max')
    return all_flags.bool().tolist()
