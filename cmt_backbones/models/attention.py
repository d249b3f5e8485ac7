"""Attention with a learned bias: the ways to compute it, and which one is taken."""
from typing import Any, Iterator, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu import BAND_SIZE, on_cpu, product
from .relative_bias import SMALL_ATTENTION, Bias, BiasFactors


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
