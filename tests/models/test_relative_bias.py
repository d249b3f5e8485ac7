"""The factors against the matrix that they stand for."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st

from cmt_backbones.models.relative_bias import RelativeBias, bicubic_matrix

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
