"""Attention with a learned bias: the ways to compute it, and the one table that chooses.

All ways compute ``softmax(q k^T / sqrt(d) + bias) v`` on heads of their own width d, with the bias of n
queries and m keys as two factors, ``query @ key.T``. What a way needs of the factors is made once a stage
(:func:`prepare_bias`); all blocks of the stage share it.
"""
import itertools
from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import BAND_SIZE, is_fast, product
from .relative_bias import BiasFactors, Grid, RelativeBias, are_numbers
from .tracing import computes_plainly, differentiable_gradients, is_transformed, product_dtype

SMALL_ATTENTION = 2**18  # pairs of a query and a key, such as in CMT's first stage at 256x256
LARGE_ATTENTION = 2**27  # pairs over all heads: a mask of 0.5 GB in float32; 1344x800 has half as many


class Case(NamedTuple):
    """What the choice goes by."""
    device: str  # 'cpu', 'cuda', ...
    dtype: torch.dtype  # of the products, autocast considered
    gradient: bool  # whether the bias table wants one
    native: bool  # whether the grids are those of the table, on which the bias need not be made
    pairs: Optional[int]  # of a query and a key; None in a graph for sizes that vary
    heads: int
    width: int  # of a head with the bias beside it, rounded up to a multiple of 8
    fixed: bool  # whether images have few sizes: ``torch.backends.cudnn.benchmark`` says so for convolutions too
    capability: Tuple[int, int]  # of a GPU
    plain: bool  # whether PyTorch's own operations are wanted, for a compiler or ``torch.func``

    @property
    def half_on_gpu(self) -> bool:
        return self.device == 'cuda' and self.dtype in (torch.float16, torch.bfloat16)


class Whole(NamedTuple):
    """A whole bias as a mask."""
    mask: Tensor  # (1, heads, n, m)

    @classmethod
    def of(cls, factors: BiasFactors, width: int, dtype: torch.dtype) -> 'Whole':
        m = len(factors.key)
        key = factors.key
        if key.is_cuda and m % 8:  # kernels would copy a mask whose rows are not aligned, in every block
            key = F.pad(key, (0, 0, 0, -m % 8))
        return cls((factors.query @ key.T)[None, ..., :m].to(dtype))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask.to(q.dtype))


class Queries(NamedTuple):
    """Some queries at a time, on CPUs."""
    query: Tensor  # (heads, n, m0)
    key: Tensor  # (m, m0)

    @classmethod
    def of(cls, factors: BiasFactors, width: int, dtype: torch.dtype) -> 'Queries':
        return cls(*(factor.to(dtype) for factor in factors))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return AttentionByQueries.apply(q, k, v, *self)


class WiderHeads(NamedTuple):
    """Heads with the factors beside them, and a v of the same width: what most fused kernels want.

    With another v PyTorch falls back, without a word, to the kernel that makes n x m.
    """
    query: Tensor  # (heads, n, m0'): the factor times sqrt(d), by which kernels divide; m0' fills the width
    key: Tensor  # (m, m0')

    @classmethod
    def of(cls, factors: BiasFactors, width: int, dtype: torch.dtype) -> 'WiderHeads':
        # Kernels for half precision take widths that are multiples of 8.
        padding = -(width + factors.key.shape[1]) % 8
        query, key = factors.query * width**0.5, factors.key
        if padding:
            query, key = F.pad(query, (0, padding)), F.pad(key, (0, padding))
        return cls(query.to(dtype), key.to(dtype))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        d = q.shape[3]
        wide = widen(q, self.query), widen(k, self.key), F.pad(v, (0, self.key.shape[1]))
        return F.scaled_dot_product_attention(*wide, scale=d**-0.5)[..., :d]


class NarrowValues(WiderHeads):
    """The same with v as it is, which cuDNN's kernel takes, and the memory-efficient one."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(widen(q, self.query), widen(k, self.key), v, scale=q.shape[3]**-0.5)


class Flash(WiderHeads):
    """Wider heads by FlashAttention's kernel; what is kept for the backward pass is not widened."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return FlashAttention.apply(q, k, v, *self)


class Way(NamedTuple):
    """A row of the table: the first that fits is taken."""
    kind: Any
    fits: Callable[[Case], bool]
    reason: str


WAYS = (
    Way(Whole, lambda case: case.native and not case.gradient,
        'the bias is there without being made; a mask costs less than wider heads'),
    Way(Whole, lambda case: (is_fast(case.device, case.dtype) and not case.plain and not case.gradient
                             and case.pairs <= SMALL_ATTENTION),
        'a bias that is small is soon made'),
    Way(Queries, lambda case: (is_fast(case.device, case.dtype) and not case.plain
                               and case.pairs > SMALL_ATTENTION),
        'the scores of some queries stay in the cache, and the products go by the faster kernels'),
    Way(NarrowValues, lambda case: case.half_on_gpu and case.fixed and case.capability >= (9, 0) and case.width <= 128,
        "cuDNN's kernel is the fastest on Hopper; it plans anew, for a second, whenever a shape is new"),
    Way(Flash, lambda case: (case.half_on_gpu and case.capability >= (8, 0) and case.width <= 256
                             and not case.plain),
        'takes any size without planning; left to itself, PyTorch would choose cuDNN on Hopper'),
    Way(Whole, lambda case: (case.device == 'cuda' and case.dtype == torch.float32 and case.pairs is not None
                             and case.heads * case.pairs <= LARGE_ATTENTION),
        'float32 is bound by arithmetic, which wider heads nearly double; their q and out, kept for each block, '
        'take more memory than one mask for the stage'),
    Way(NarrowValues, lambda case: (case.device == 'cuda' and case.dtype == torch.float32 and not case.plain),
        'the same arithmetic counts, but no mask of this size; the memory-efficient kernel takes a narrow v'),
    Way(WiderHeads, lambda case: True, 'fits every kernel'),
)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
    """``softmax(q k^T / sqrt(d) + bias) v``.

    Args:
        q (Tensor): (N, heads, n, d).
        k (Tensor): (N, heads, m, d).
        v (Tensor): (N, heads, m, d).
        bias (Whole | Queries | WiderHeads): For n queries and m keys, from :func:`prepare_bias`.

    Returns:
        Tensor: (N, heads, n, d).
    """
    return bias.attend(q, k, v)


def prepare_bias(table: RelativeBias, grids: Tuple[Grid, Grid], width: int, x: Tensor) -> Any:
    """The bias of a stage in the form that the fastest way for it wants.

    Args:
        table (RelativeBias): The learned table.
        grids (tuple[Grid, Grid]): Rows and columns of queries, and of keys.
        width (int): Of a head, d.
        x (Tensor): What queries and keys are projected from.
    """
    case = case_of(table, grids, width, x)
    kind = next(way.kind for way in WAYS if way.fits(case))
    if kind is Whole and case.native:
        # Detached without a gradient: fused kernels refuse a mask that is a parameter.
        mask = table.table if case.gradient else table.table.detach()
        return Whole(mask[None].to(case.dtype))
    return kind.of(table.factors(*grids), width, case.dtype)


def case_of(table: RelativeBias, grids: Tuple[Grid, Grid], width: int, x: Tensor) -> Case:
    known = are_numbers(*grids)
    (rows, columns), (key_rows, key_columns) = grids
    m0 = table.table.shape[2]
    return Case(
        device=x.device.type, dtype=product_dtype(x),
        gradient=torch.is_grad_enabled() and table.table.requires_grad or is_transformed(),
        native=known and tuple(map(tuple, grids)) == (table.query_grid, table.key_grid),
        pairs=rows * columns * key_rows * key_columns if known else None,
        heads=table.table.shape[0], width=width + m0 + -(width + m0) % 8,
        fixed=torch.backends.cudnn.benchmark, capability=capability(x), plain=computes_plainly())


def capability(x: Tensor) -> Tuple[int, int]:
    """Of the GPU that x is on, (9, 0) for Hopper; for a fake tensor, where there is no GPU, as of one."""
    if x.device.type == 'cuda' and torch.cuda.is_initialized():
        return torch.cuda.get_device_capability(x.device)
    return (9, 0)


def widen(x: Tensor, factor: Tensor) -> Tensor:
    """(N, heads, length, d) and a factor (..., length, m0) -> (N, heads, length, d + m0)."""
    return torch.cat([x, factor.expand(*x.shape[:3], factor.shape[-1])], dim=-1)


class FlashAttention(torch.autograd.Function):
    """Attention on wider heads by PyTorch's operators of FlashAttention.

    Wider heads and the zeros beside v are made again for the backward pass: kept, they would take twice the
    memory of q, k, v and what comes out.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, query: Tensor, key: Tensor) -> Tensor:
        d = q.shape[3]
        wide = widen(q, query), widen(k, key), F.pad(v, (0, key.shape[1]))
        out, *rest = flash(wide, d**-0.5)
        # In the order (N, n, heads, d) of the layers around: one memory for them and for the backward pass.
        out = out[..., :d].transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(q, k, v, query, key, out, *rest)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError('FlashAttention has no second derivative: take it in float32, or by torch.func')
        q, k, v, query, key, out, *rest = ctx.saved_tensors
        d, zeros = q.shape[3], (0, key.shape[1])
        grads = flash_backward(F.pad(grad, zeros), (widen(q, query), widen(k, key), F.pad(v, zeros)),
                               F.pad(out, zeros), rest, d**-0.5)
        of_query = grads[0][..., d:].sum(0) if ctx.needs_input_grad[3] else None
        of_key = grads[1][..., d:].sum((0, 1)) if ctx.needs_input_grad[4] else None
        return (*(x[..., :d] for x in grads), of_query, of_key)


def flash(inputs: Sequence[Tensor], scale: float) -> tuple:
    """What comes out, and the tensors that the backward pass wants beside it; on CPUs by the kernel for them."""
    if inputs[0].device.type == 'cpu':
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*inputs, 0., False, scale=scale)
    out, deviation, lengths_q, lengths_k, _, _, seed, offset, _ = (
        torch.ops.aten._scaled_dot_product_flash_attention(*inputs, 0., False, False, scale=scale))
    return out, deviation, lengths_q, lengths_k, seed, offset


def flash_backward(grad: Tensor, inputs: Sequence[Tensor], out: Tensor, rest: Sequence[Optional[Tensor]],
                   scale: float) -> Tuple[Tensor, ...]:
    """The gradients of q, k and v."""
    if grad.device.type == 'cpu':
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, *inputs, out, *rest, 0., False, scale=scale)
    deviation, lengths_q, lengths_k, seed, offset = rest
    longest = inputs[0].shape[2], inputs[1].shape[2]
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad, *inputs, out, deviation, lengths_q, lengths_k, *longest, 0., False, seed, offset, scale=scale)


class AttentionByQueries(torch.autograd.Function):
    """Attention on a CPU: some queries at a time, whose scores stay in the cache.

    For the backward pass it keeps its inputs alone, and computes the scores again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, query: Tensor, key: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, query, key)
        batch, heads, n, d = q.shape
        out = q.new_empty(batch, n, heads, d).transpose(1, 2)
        for image, head in heads_of(q):
            keys, values = widen_keys(k[image, head], v[image, head], key)
            for some in bands_of_queries(q, k):
                out[image, head, some] = attend(q[image, head, some], query[head, some], keys, values)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return second_derivable(inputs, ctx.needs_input_grad, grad)
        # Many bands add to them, and each sum would be rounded.
        totals = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in inputs]
        for image, head in heads_of(inputs[0]):
            for some in bands_of_queries(*inputs[:2]):
                places = (image, head, some), (image, head), (image, head), (head, some), ()
                q, k, v, query, key = band = [
                    x[place].detach().requires_grad_() for x, place in zip(inputs, places)]
                with torch.enable_grad():
                    out = attend(q, query, *widen_keys(k, v, key))
                for total, place, part in zip(totals, places, torch.autograd.grad(out, band, grad[places[0]])):
                    total[place] += part
        return tuple(total.to(x.dtype) for total, x in zip(totals, inputs))


def second_derivable(inputs: Sequence[Tensor], needs: Sequence[bool], grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    """The gradients of attention as functions that can be differentiated again, with all of n x m."""
    q, k, v, query, key = inputs
    out = (q @ k.mT * q.shape[3]**-0.5 + query @ key.mT).softmax(-1) @ v
    return differentiable_gradients(out, inputs, needs, grad)


def heads_of(q: Tensor) -> Iterator[Tuple[int, int]]:
    """Every head of every image."""
    return itertools.product(range(q.shape[0]), range(q.shape[1]))


def bands_of_queries(q: Tensor, k: Tensor) -> Iterator[slice]:
    n, m = q.shape[2], k.shape[2]
    rows = max(BAND_SIZE // m, 256)
    return (slice(start, start + rows) for start in range(0, n, rows))


def widen_keys(k: Tensor, v: Tensor, bias_key: Tensor) -> Tuple[Tensor, Tensor]:
    """Of a head, what all queries share: (m, d), (m, d), (m, m0) -> (m, d + m0) and (d, m)."""
    return torch.cat([k * k.shape[1]**-0.5, bias_key], dim=1), v.T.contiguous()


def attend(q: Tensor, bias_query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of some queries of a head: (n, d), (n, m0) -> (n, d)."""
    return product(product(torch.cat([q, bias_query], dim=1), keys).softmax(dim=1), values)
