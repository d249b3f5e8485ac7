"""What resizing does to a position bias.

A table of CMT's last stage is filled with a function of the places of a query and a key, so that what it
should be on another grid is known: the function itself. The picture has, for one query, the bias of all
keys: as the table has it, as it should be, and as the two resizes give it. Correlations are over all
queries and keys.
"""
from pathlib import Path
from typing import Callable, Dict, Tuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..models.relative_bias import Grid, RelativeBias

WAYS = ('geometric', 'flat')
SHOWN = (0.65, 0.4)  # the query of the picture, in shares of height and width
# Of the vectors (..., 2) from queries to keys, rows and columns in shares of the image.
FUNCTIONS: Dict[str, Callable[[Tensor], Tensor]] = {
    'near': lambda away: torch.exp(-away.square().sum(-1) / 0.045),
    'same row': lambda away: torch.exp(-away[..., 0].square() / 0.045),
    'same column': lambda away: torch.exp(-away[..., 1].square() / 0.045),
}


def places(grid: Grid) -> Tensor:
    """The centres (n, 2) of the cells of a grid, in shares of its height and width."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)
    return torch.cartesian_prod(rows, columns)


def table(function: Callable[[Tensor], Tensor], grid: Grid) -> Tensor:
    """The bias (1, n, n) of queries and keys on one grid."""
    return function(places(grid)[None] - places(grid)[:, None])[None]


@torch.no_grad()
def resized(native: Tensor, native_grid: Grid, grid: Grid, interpolation: str) -> Tensor:
    """A table (1, n0, n0) on another grid, (n, n), as the backbone resizes it."""
    bias = RelativeBias(1, native_grid, native_grid, interpolation)
    bias.table.copy_(native)
    query, key = bias.factors(grid, grid)
    return (query @ key.T)[0]


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over all entries; in float64, since sums over millions would show the order of float32's."""
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()


def draw(native_grid: Grid, grid: Grid, out: Path) -> Dict[str, Dict[str, float]]:
    """Draws the bias of every function into `out`, one row each.

    Args:
        native_grid: Of the table.
        grid: What it is resized to.

    Returns:
        dict[str, dict[str, float]]: For every function the correlation of each of WAYS with what it
        should be.
    """
    figure = Figure(figsize=(13, 2.35 * len(FUNCTIONS)), layout='constrained')
    agreements = {}
    for row, (name, function) in zip(figure.subplots(len(FUNCTIONS), 4), FUNCTIONS.items()):
        native, wanted = table(function, native_grid), table(function, grid)[0]
        found = {way: resized(native, native_grid, grid, way) for way in WAYS}
        agreement = agreements[name] = {way: correlation(bias, wanted) for way, bias in found.items()}
        panels = [(f'{name}: the table', native[0], native_grid), ('what it should be', wanted, grid)]
        panels += [(f'{way}, correlation {agreement[way]:.2f}', bias, grid) for way, bias in found.items()]
        for axis, panel in zip(row, panels):
            show(axis, *panel)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    return agreements


def show(axis: Axes, title: str, bias: Tensor, sides: Tuple[int, int]) -> None:
    """The bias (n, n) of one query, at SHOWN, for all keys of a grid."""
    row, column = (int(share * side) for share, side in zip(SHOWN, sides))
    axis.imshow(bias[row * sides[1] + column].view(sides), vmin=0, vmax=1, extent=(0, sides[1], sides[0], 0),
                cmap='viridis', aspect='auto')
    axis.plot(column + .5, row + .5, 'r+', markersize=9, markeredgewidth=2)
    axis.set_title(f'{title}, {sides[0]} x {sides[1]}', fontsize='small')
    axis.axis('off')
