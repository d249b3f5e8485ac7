"""Shows what resizing does to a position bias: `python tools/draw_position_bias.py --out PNG`.

A table of CMT's last stage is filled with a function of the places of a query and a key, so that what it
should be on another grid is known: the function itself. The picture has, for one query, the bias of all
keys: as the table has it, as it should be, and as the two resizes give it. The correlations that it
prints are over all queries and keys.
"""
import argparse
from pathlib import Path
from typing import Callable

import matplotlib
import torch
from torch import Tensor

from cmt_backbones.models.relative_bias import Grid, RelativeBias

matplotlib.use('Agg')
import matplotlib.pyplot as plt

# Of the vectors (..., 2) from queries to keys, rows and columns in shares of the image.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
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
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, metavar='PNG')
    parser.add_argument('--native', type=int, default=224, metavar='PIXELS',
                        help='side of the images that the table was learned on (default: 224, CMT-S)')
    parser.add_argument('--shape', type=int, nargs=2, default=[800, 1280], metavar=('H', 'W'),
                        help='height and width of the images at hand (default: 800 1280)')
    args = parser.parse_args(argv)
    if args.native < 64 or min(args.shape) < 64:
        parser.error('--native and --shape take at least 64 pixels')
    native_grid, grid = (args.native // 32, ) * 2, (args.shape[0] // 32, args.shape[1] // 32)
    shown = (0.65, 0.4)  # the query, in shares of height and width
    figure, axes = plt.subplots(len(FUNCTIONS), 4, figsize=(13, 2.35 * len(FUNCTIONS)), layout='constrained')
    print(f'{"bias":12} {"geometric":>9} {"flat":>9}')
    for row, (name, function) in zip(axes, FUNCTIONS.items()):
        native, wanted = table(function, native_grid), table(function, grid)[0]
        found = {kind: resized(native, native_grid, grid, kind) for kind in ('geometric', 'flat')}
        agreement = {kind: correlation(bias, wanted) for kind, bias in found.items()}
        print(f'{name:12} {agreement["geometric"]:9.3f} {agreement["flat"]:9.3f}')
        panels = [(f'{name}: the table', native[0], native_grid), ('what it should be', wanted, grid)]
        panels += [(f'{kind}, correlation {agreement[kind]:.2f}', bias, grid) for kind, bias in found.items()]
        for axis, (title, bias, sides) in zip(row, panels):
            query = [int(share * side) for share, side in zip(shown, sides)]
            picture = bias[query[0] * sides[1] + query[1]].view(sides)
            axis.imshow(picture, vmin=0, vmax=1, extent=(0, sides[1], sides[0], 0), cmap='viridis',
                        aspect='auto')
            axis.plot(query[1] + .5, query[0] + .5, 'r+', markersize=9, markeredgewidth=2)
            axis.set_title(f'{title}, {sides[0]} x {sides[1]}', fontsize='small')
            axis.axis('off')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)
    plt.close(figure)
    print(args.out)


if __name__ == '__main__':
    main()
