"""Whether weights fill a backbone, and what is changed in them so that they do."""
import re
from typing import List, Mapping, Tuple

import torch.nn.functional as F
from torch import Tensor

from .layouts import Layout, StateDict


def fit(state: StateDict, wanted: Mapping[str, Tensor], layout: Layout) -> Tuple[StateDict, List[str]]:
    """What to load for every key of `wanted`, and notes for the log.

    Raises:
        ValueError: If a weight is missing or of another shape, or if the file is of a deeper
            backbone, of which only a part would be used.
    """
    there, anew = depths(state), set()  # what the file has, and what is not its
    state, notes = dict(state), []
    norms = {k for k in wanted if OUTPUT_NORM.match(k)}
    if norms - set(state):
        # A classifier has none, or the one of its head, which is none of a detector's.
        state.update({k: wanted[k] for k in norms})
        anew |= norms
        notes.append('the output norms start anew, as in the official detectors')
    for key in wanted:
        if key.endswith('num_batches_tracked') and key not in state:
            anew.add(key)
            if key.replace('num_batches_tracked', 'running_mean') in state:  # from before PyTorch 0.4.1
                state[key] = wanted[key]
        elif key.endswith('relative_bias.table') and key in state:
            resized = resize_table(state[key], wanted[key].shape)
            if resized is not state[key]:
                notes.append(f'{key} resized from {tuple(state[key].shape)} to {tuple(resized.shape)}')
                state[key] = resized

    missing = [k for k in wanted if k not in state and k not in anew]
    misfits = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    stages = {k.split('.')[1] for k in wanted if k.startswith('stages.')}
    surplus = [k for k in state if k not in wanted and k.startswith('stages.')
               and k.split('.')[1] in stages]
    if missing or misfits or surplus:
        of_file = len(wanted) - len(anew)
        told = [f'it looks like {layout.name}; {of_file - len(missing) - len(misfits)} of '
                f'{of_file} weights fit']
        if missing:
            told.append(f'missing: {missing[0]}' + more(missing))
        if misfits:
            key = misfits[0]
            told.append(f'wrong shape: {key} is {tuple(state[key].shape)} there and '
                        f'{tuple(wanted[key].shape)} here' + more(misfits))
        if surplus:
            told.append(f'no place here for: {surplus[0]}' + more(surplus))
        told.append('try another arch (depths there: '
                    f'{there}, here: {depths(wanted)}) or another file')
        raise ValueError('; '.join(told))
    return {k: state[k] for k in wanted}, notes


OUTPUT_NORM = re.compile(r'norm[0-3]\.')


def more(keys: List[str]) -> str:
    return f' and {len(keys) - 1} more' if len(keys) > 1 else ''


def depths(state: Mapping[str, Tensor]) -> Tuple[int, ...]:
    """Blocks in each stage, read off the keys."""
    numbers = {m.groups() for m in (re.match(r'stages\.(\d)\.(?:blocks\.)?(\d+)\.', k) for k in state) if m}
    return tuple(sum(stage == str(i) for stage, _ in numbers) for i in range(4))


def resize_table(table: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """A CMT bias table at another native size; as it is where shapes agree or cannot be made to."""
    sides = [round(n**.5) for n in (*table.shape[1:], *shape[1:])]
    square = [s * s for s in sides] == [*table.shape[1:], *shape[1:]]
    if table.shape == shape or table.dim() != 3 or table.shape[0] != shape[0] or not square:
        return table
    query0, key0, query, key = sides
    heads = len(table)
    # The resize that RelativeBias does, of the two grids in turn: (heads, rows, columns) of queries and of keys.
    table = table.float().reshape(heads, query0, query0, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(query, query), mode='bicubic', align_corners=False)
    table = table.permute(0, 2, 3, 1).reshape(heads, -1, key0, key0)
    return F.interpolate(table, size=(key, key), mode='bicubic', align_corners=False).flatten(2)
