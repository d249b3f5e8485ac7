"""A learned attention bias on any grid, as two exact factors.

CMT learns one number for every pair of a query position and a key position of the training
grid, a table of shape (heads, n0, m0). On another grid the table is resized. A resize that
treats queries and keys separately is linear on either side, so the resized bias is exactly

    bias (heads, n, m) = query_factor (heads, n, m0) @ key_factor (m, m0)^T

and since ``q k^T + Q K^T = [q, Q] [k, K]^T``, attention with the bias is attention without one
on heads that are m0 wider. The (n, m) matrix, 64 million numbers in CMT's first stage at
1280x800, is never made, forward or backward, and any attention kernel will do.
"""
from contextlib import nullcontext
from typing import NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = Tuple[int, int]


class BiasFactors(NamedTuple):
    """``bias = query @ key.T``, exactly."""
    query: Tensor  # (heads, n, m0)
    key: Tensor  # (m, m0)


class RelativeBias(nn.Module):
    """The learned table of one stage, and its factors on the grid at hand.

    Args:
        num_heads (int): Attention heads.
        query_grid (tuple[int, int]): Rows and columns of queries that the table is learned on.
        key_grid (tuple[int, int]): The same for keys.
        interpolation (str): ``'geometric'`` resizes the four grid axes (query rows and columns,
            key rows and columns) each by a 1-D bicubic. ``'flat'`` is the sentence of the paper
            (arXiv 2107.06263, section 3.3) taken literally, one bicubic over the (n, m) matrix; it
            mixes up columns, since neighbours in the raster order are not neighbours on the
            grid, and is there for comparison.
    """

    def __init__(self, num_heads: int, query_grid: Grid, key_grid: Grid,
                 interpolation: str = 'geometric') -> None:
        super().__init__()
        if interpolation not in ('geometric', 'flat'):
            raise ValueError(f"bias_interpolation must be 'geometric' or 'flat', not {interpolation!r}")
        self.query_grid, self.key_grid = query_grid, key_grid
        self.interpolation = interpolation
        n0, m0 = query_grid[0] * query_grid[1], key_grid[0] * key_grid[1]
        self.table = nn.Parameter(torch.randn(num_heads, n0, m0))  # unit variance, as official

    def forward(self, query_grid: Grid, key_grid: Grid) -> BiasFactors:
        return self.factors(query_grid, key_grid)

    def factors(self, query_grid: Grid, key_grid: Grid) -> BiasFactors:
        """The factors on these grids. On the native grids they are the table and the identity."""
        # The bicubic weights need more than the 8 bits that autocast would leave them.
        kind = self.table.device.type
        with torch.autocast(kind, enabled=False) if kind != 'meta' else nullcontext():
            if self.interpolation == 'geometric':
                return geometric_factors(self.table, (self.query_grid, self.key_grid),
                                         (query_grid, key_grid))
            return flat_factors(self.table, query_grid[0] * query_grid[1],
                                key_grid[0] * key_grid[1])

    def extra_repr(self) -> str:
        return f'query_grid={self.query_grid}, key_grid={self.key_grid}, {self.interpolation}'


def geometric_factors(table: Tensor, native: Tuple[Grid, Grid],
                      wanted: Tuple[Grid, Grid]) -> BiasFactors:
    """Resizes each of the four grid axes of a table by a 1-D bicubic.

    Args:
        table (Tensor): (heads, n0, m0).
        native (tuple[Grid, Grid]): Query and key grid of the table.
        wanted (tuple[Grid, Grid]): Query and key grid at hand.
    """
    (query0, key0), (query, key) = native, wanted
    rows, columns = (bicubic_matrix(query0[i], query[i], table) for i in (0, 1))
    # Products with small matrices instead of F.interpolate: its backward is not deterministic
    # on GPUs.
    factor = torch.einsum('ra,habm->hrbm', rows, table.unflatten(1, query0))
    factor = torch.einsum('cb,hrbm->hrcm', columns, factor)
    rows, columns = (bicubic_matrix(key0[i], key[i], table) for i in (0, 1))
    key_factor = torch.einsum('ra,cb->rcab', rows, columns)
    return BiasFactors(factor.flatten(1, 2), key_factor.flatten(2).flatten(0, 1))


def flat_factors(table: Tensor, n: int, m: int) -> BiasFactors:
    """Resizes a table (heads, n0, m0) to (heads, n, m) by one bicubic over the matrix."""
    m0 = table.shape[2]
    query = F.interpolate(table[None], size=(n, m0), mode='bicubic', align_corners=False)[0]
    return BiasFactors(query, bicubic_matrix(m0, m, table))


def bicubic_matrix(size_in: int, size_out: int, like: Tensor) -> Tensor:
    """The 1-D bicubic resize as a matrix (size_out, size_in): PyTorch's, applied to the identity.

    ``align_corners=False``, a = -0.75, no antialiasing. Equal sizes give the identity.
    """
    identity = torch.eye(size_in, dtype=like.dtype, device=like.device)
    if are_numbers([size_out]) and size_in == size_out:
        return identity
    columns = identity[None, :, :, None]  # (1, which sample, position, 1)
    resized = F.interpolate(columns, size=(size_out, 1), mode='bicubic', align_corners=False)
    return resized[0, :, :, 0].T


def are_numbers(*grids: Sequence[int]) -> bool:
    """Whether sizes are known: torch.export has symbols for dynamic ones, and comparing one binds it."""
    return all(isinstance(side, int) for grid in grids for side in grid)
