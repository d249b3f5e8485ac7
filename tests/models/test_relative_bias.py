"""The factors against the matrix that they stand for."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cmt_backbones.models import relative_bias
from cmt_backbones.models.attention import AttentionByQueries, attention
from cmt_backbones.models.relative_bias import BiasFactors, RelativeBias, bicubic_matrix

sides = st.integers(1, 12)
grids = st.tuples(sides, sides)


def whole(bias: RelativeBias, query_grid, key_grid):
    """The resized table by PyTorch's own 2-D resizes, queries first, then keys."""
    table = bias.table
    heads, n0, m0 = table.shape
    n, m = query_grid[0] * query_grid[1], key_grid[0] * key_grid[1]
    if bias.interpolation == 'flat':
        return F.interpolate(table[None], size=(n, m), mode='bicubic', align_corners=False)[0]
    table = table.reshape(heads, *bias.query_grid, m0).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=query_grid, mode='bicubic', align_corners=False)
    table = table.reshape(heads, *bias.key_grid, n).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=key_grid, mode='bicubic', align_corners=False)
    return table.reshape(heads, n, m)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@given(grids, grids, grids, grids, st.sampled_from(['geometric', 'flat']))
def test_factors_are_the_resized_table(native_q, native_k, query_grid, key_grid, interpolation):
    bias = RelativeBias(2, native_q, native_k, interpolation)
    factors = bias.factors(query_grid, key_grid)
    assert factors.query.shape == (2, query_grid[0] * query_grid[1], bias.table.shape[2])
    assert relative_error(factors.query @ factors.key.T, whole(bias, query_grid, key_grid)) < 1e-5


def test_the_whole_bias_only_where_it_is_there_or_small_and_needs_no_gradient():
    bias = RelativeBias(2, (6, 4), (3, 2))
    native, small, large = ((6, 4), (3, 2)), ((9, 8), (3, 4)), ((40, 60), (10, 12))
    for grids in (native, small, large):
        assert isinstance(bias(*grids), BiasFactors)
    with torch.no_grad():
        assert torch.equal(bias(*native), bias.table[None]) and not bias(*native).requires_grad
        assert relative_error(bias(*small)[0], whole(bias, *small)) < 1e-5
        assert isinstance(bias(*large), BiasFactors)


@given(st.integers(1, 2), st.integers(1, 700), st.integers(1, 9), st.integers(1, 2**13))
def test_attention_by_queries_is_attention(batch, n, m, band_size):
    bias = BiasFactors(torch.randn(2, n, 4, requires_grad=True), torch.randn(m, 4))
    q, k, v = (torch.randn(batch, 2, length, 5, requires_grad=True) for length in (n, m, m))
    outs, grads, probe = [], [], torch.randn_like(q)
    for small_attention in (2**18, 0):  # on wider heads; by queries
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relative_bias, 'BAND_SIZE', band_size)
            patch.setattr(relative_bias, 'SMALL_ATTENTION', small_attention)
            outs.append(attention(q, k, v, bias))
            grads.append(torch.autograd.grad((outs[-1] * probe).sum(), (q, k, v, bias.query)))
    assert relative_error(outs[1], outs[0]) < 1e-5
    for got, want in zip(*reversed(grads)):
        assert (got - want).norm() < 1e-5 * (want.norm() + probe.norm())


@pytest.mark.parametrize('interpolation', ['geometric', 'flat'])
def test_native_grid_is_not_resized(interpolation):
    bias = RelativeBias(2, (6, 4), (3, 2), interpolation)
    factors = bias.factors((6, 4), (3, 2))
    assert torch.equal(factors.query, bias.table)
    assert torch.equal(factors.key, torch.eye(6))


def test_flat_mixes_up_columns_and_geometric_does_not():
    """A bias that depends on the key's column alone must still do so on another grid."""
    for interpolation, bound in [('geometric', 0.98), ('flat', 0.6)]:
        bias = RelativeBias(1, (7, 7), (7, 7), interpolation)
        columns = torch.linspace(-1, 1, 7)
        bias.table.data = columns.repeat(7).expand(1, 49, 49).clone()
        factors = bias.factors((25, 40), (25, 40))
        expected = torch.linspace(-1, 1, 40).repeat(25).expand(1000, 1000)
        got = (factors.query @ factors.key.T)[0]
        correlation = torch.corrcoef(torch.stack([got.flatten(), expected.flatten()]))[0, 1]
        assert correlation > bound if interpolation == 'geometric' else correlation < bound


@pytest.mark.parametrize('way', [attention, lambda q, k, v, bias: AttentionByQueries.apply(q, k, v, *bias)],
                         ids=['wider heads', 'by queries'])
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), grids, st.integers(1, 10))
def test_attention_and_its_gradients_are_those_with_the_whole_bias(way, batch, heads, d, query_grid, m):
    n, m0 = query_grid[0] * query_grid[1], 6
    factors = BiasFactors(torch.randn(heads, n, m0, dtype=torch.double),
                          torch.randn(m, m0, dtype=torch.double))
    q, k, v = (torch.randn(batch, heads, length, d, dtype=torch.double) for length in (n, m, m))
    inputs = [x.requires_grad_() for x in (q, k, v, *factors)]
    out = way(q, k, v, factors)
    expected = torch.softmax(q @ k.mT / d**.5 + factors.query @ factors.key.T, dim=-1) @ v
    assert relative_error(out, expected) < 1e-12
    probe = torch.randn_like(out)
    for got, want in zip(torch.autograd.grad((out * probe).sum(), inputs),
                         torch.autograd.grad((expected * probe).sum(), inputs)):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-10)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize('small_attention', [2**30, 0], ids=['wider heads', 'by queries'])
def test_nothing_of_size_n_by_m_is_made(small_attention, monkeypatch):
    monkeypatch.setattr(relative_bias, 'SMALL_ATTENTION', small_attention)
    monkeypatch.setattr(relative_bias, 'BAND_SIZE', 256 * 24 * 32)
    bias = RelativeBias(1, (8, 8), (2, 2))
    query_grid, key_grid = (48, 64), (24, 32)
    n, m, d = 48 * 64, 24 * 32, 12
    q, k, v = (torch.randn(1, 1, length, d, requires_grad=True) for length in (n, m, m))
    with LargestTensor() as largest:
        attention(q, k, v, bias(query_grid, key_grid)).square().sum().backward()
    assert bias.table.grad.abs().sum() > 0
    assert largest.elements <= n * 8 * 8  # the rows of the resize; wider heads and a band are no more
    assert n * m > 10 * largest.elements


@given(st.integers(1, 30), st.integers(1, 90))
def test_bicubic_matrix_keeps_constants(size_in, size_out):
    matrix = bicubic_matrix(size_in, size_out, torch.zeros(()))
    assert matrix.shape == (size_out, size_in)
    assert torch.allclose(matrix.sum(1), torch.ones(size_out), atol=1e-5)
    if size_in == size_out:
        assert torch.equal(matrix, torch.eye(size_in))


def test_unknown_interpolation():
    with pytest.raises(ValueError, match="must be 'geometric' or 'flat', not 'bilinear'"):
        RelativeBias(1, (2, 2), (1, 1), 'bilinear')
