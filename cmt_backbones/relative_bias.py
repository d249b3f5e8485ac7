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
from typing import Any, Iterator, NamedTuple, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .cpu import BAND_SIZE, infers_on_cpu, on_cpu, product

Grid = Tuple[int, int]

SMALL_ATTENTION = 2**18  # pairs of a query and a key, such as in CMT's first stage at 256x256


class BiasFactors(NamedTuple):
    """``bias = query @ key.T``, exactly."""
    query: Tensor  # (heads, n, m0)
    key: Tensor  # (m, m0)


Bias = Union[BiasFactors, Tensor]  # factors, or the whole bias (1, heads, n, m)


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

    def forward(self, query_grid: Grid, key_grid: Grid) -> Bias:
        """The bias on these grids, in factors unless the whole of it is faster.

        That takes no gradient, and a bias that is there without being made, on the native grids, or is
        small: then a mask is faster than wider heads.
        """
        if torch.is_grad_enabled() and self.table.requires_grad:
            return self.factors(query_grid, key_grid)
        grids = tuple(query_grid), tuple(key_grid)
        if are_numbers(*grids) and grids == (self.query_grid, self.key_grid):
            # Detached: fused kernels refuse a mask that is a parameter, even without gradients.
            return self.table.detach()[None]
        factors = self.factors(*grids)
        if infers_on_cpu(self.table) and factors.query.shape[1] * factors.key.shape[0] <= SMALL_ATTENTION:
            return (factors.query @ factors.key.T)[None]
        return factors

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


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """``softmax(q k^T / sqrt(d) + bias) v``.

    Args:
        q (Tensor): (N, heads, n, d).
        k (Tensor): (N, heads, m, d).
        v (Tensor): (N, heads, m, d).
        bias (BiasFactors | Tensor): For n queries and m keys.

    Returns:
        Tensor: (N, heads, n, d).
    """
    if isinstance(bias, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    if on_cpu(q) and q.shape[2] * k.shape[2] > SMALL_ATTENTION:
        return AttentionByQueries.apply(q, k, v, *bias)
    return attention_on_wider_heads(q, k, v, bias)


def attention_on_wider_heads(q: Tensor, k: Tensor, v: Tensor, bias: BiasFactors) -> Tensor:
    """:func:`attention` by any kernel for attention without a bias."""
    (batch, heads, _, d), m0 = q.shape, bias.key.shape[1]
    # Fused kernels want one width for q, k and v (otherwise PyTorch falls back, without a word,
    # to the one that does make n x m) and, on GPUs in half precision, a multiple of 8.
    padding = -(d + m0) % 8
    # The kernel divides by sqrt(d) and the bias is not to be divided.
    query = F.pad(bias.query * d**0.5, (0, padding)).to(q.dtype)
    key = F.pad(bias.key, (0, padding)).to(k.dtype)
    q = torch.cat([q, query.expand(batch, *query.shape)], dim=-1)
    k = torch.cat([k, key.expand(batch, heads, *key.shape)], dim=-1)
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, m0 + padding)), scale=d**-0.5)
    return out[..., :d]


class AttentionByQueries(torch.autograd.Function):
    """:func:`attention` on a CPU: some queries at a time, whose scores stay in the cache.

    For the backward pass it keeps its inputs alone, and computes the scores again.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        batch, heads, n, d = inputs[0].shape
        out = inputs[0].new_empty(batch, n, heads, d).transpose(1, 2)
        for places in bands_of_queries(*inputs[:2]):
            out[places[0]] = plain_attention(*(x[place] for x, place in zip(inputs, places)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in inputs]
        for places in bands_of_queries(*inputs[:2]):
            band = [x[place].detach().requires_grad_() for x, place in zip(inputs, places)]
            with torch.enable_grad():
                out = plain_attention(*band)
            for total, place, part in zip(grads, places, torch.autograd.grad(out, band, grad[places[0]])):
                total[place] += part
        return tuple(grads)


def bands_of_queries(q: Tensor, k: Tensor) -> Iterator[Tuple[tuple, ...]]:
    """Of each band, where it is in q, k, v (N, heads, n, d) and in the query and key factor."""
    batch, heads, n, _ = q.shape
    rows = max(BAND_SIZE // k.shape[2], 256)
    for image in range(batch):
        for head in range(heads):
            for start in range(0, n, rows):
                some = slice(start, start + rows)
                yield (image, head, some), (image, head), (image, head), (head, some), ()


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias_query: Tensor, bias_key: Tensor) -> Tensor:
    """:func:`attention` of one head of one image: (n, d), (m, d), (m, d), (n, m0), (m, m0) -> (n, d)."""
    queries = torch.cat([q, bias_query], dim=1)
    keys = torch.cat([k * q.shape[1]**-0.5, bias_key], dim=1)
    return product(product(queries, keys).softmax(dim=1), v.T.contiguous())


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
