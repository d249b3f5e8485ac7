"""Where CMT attends from a point, against the whole attention that its blocks compute."""
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import small_models
import tool
from cmt_backbones.data import shapes as drawn_scenes
from cmt_backbones.openmmlab import ModelError
from cmt_backbones.openmmlab.inference import build_model, read_config
from cmt_backbones.visualization import attention_maps, feature_maps

HEADS, WIDTH = (1, 2, 4, 8), 8
# The backbone's tables are those of 64x64. Images go through as they are, or enlarged.
AS_IT_IS = {'test_dataloader.dataset.pipeline': [
    dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]}


def build(folder, deploy=False, interpolation='geometric', **options):
    config = read_config(small_models.segmentor(folder, 'CMT'), options)
    config.model.backbone.arch.update(depths=(1, 2, 2, 1))
    config.model.backbone.bias_interpolation = interpolation
    torch.manual_seed(0)
    model = build_model(config)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_var, .5, 2)
    for name, parameter in model.backbone.named_parameters():
        if '.attn.' in name and parameter.dim() == 2:
            parameter.data *= 20  # so that content counts beside a bias of unit variance
    if deploy:
        model.backbone.switch_to_deploy()
    return model


def scene(height, width, seed=0):
    return drawn_scenes.scene(np.random.default_rng(seed), height, width)[0]


def whole_bias(table, grid, key_grid):
    """The bias (heads, n, m), by two bicubics over the axes of the table instead of by factors."""
    (r0, c0), (kr0, kc0), heads = table.query_grid, table.key_grid, len(table.table)
    bias = table.table.view(heads, r0, c0, kr0 * kc0).permute(0, 3, 1, 2)
    bias = F.interpolate(bias, size=grid, mode='bicubic', align_corners=False).flatten(2)  # (heads, m0, n)
    bias = bias.transpose(1, 2).unflatten(2, (kr0, kc0))
    return F.interpolate(bias, size=key_grid, mode='bicubic', align_corners=False).flatten(2)


def computed(model, image):
    """By stage and block: q, k, v (heads, n or m, d), what attention gave (n, C), and the grid, from the model."""
    inputs, outputs, hooks = {}, {}, []
    places = [(i, j) for i, stage in enumerate(model.backbone.stages) for j in range(len(stage.blocks))]
    for place in places:
        attn = model.backbone.stages[place[0]].blocks[place[1]].attn
        hooks += [attn.register_forward_pre_hook(lambda _, args, place=place: inputs.update({place: args})),
                  attn.proj.register_forward_pre_hook(lambda _, args, place=place: outputs.update({place: args[0][0]}))]
    feature_maps.run_backbone(model, image)
    for hook in hooks:
        hook.remove()
    for i, j in places:
        (x, grid, _), attn = inputs[i, j], model.backbone.stages[i].blocks[j].attn
        reduced = attn.reduce(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        (of_k, of_v), (k_bias, v_bias) = attn.kv.weight.chunk(2), attn.kv.bias.chunk(2)
        q, k, v = (F.linear(tokens[0], weight, bias).unflatten(1, (HEADS[i], -1)).transpose(0, 1)
                   for tokens, weight, bias in ((x, attn.q.weight, attn.q.bias), (reduced, of_k, k_bias),
                                                (reduced, of_v, v_bias)))
        yield i, j, q, k, v, outputs[i, j], grid


@torch.no_grad()
@pytest.mark.parametrize('size, deploy', [((64, 64), False), ((107, 150), False), ((70, 97), True)],
                         ids=['native', 'odd', 'odd, deployed'])
def test_a_query_attends_as_the_model_computes_it(size, deploy, tmp_path):
    model, image = build(tmp_path, deploy, **AS_IT_IS), scene(*size)
    attention = attention_maps.Attention(model, image)
    key_grid = tuple(-(-side // 32) for side in size)
    assert attention.key_grid == key_grid and attention.size == size and attention.depths == [1, 2, 2, 1]
    blocks = 0
    for stage, block, q, k, v, out, grid in computed(model, image):
        content = q @ k.mT * WIDTH**-0.5
        bias = whole_bias(model.backbone.stages[stage].relative_bias, grid, key_grid)
        whole = (content + bias).softmax(2)
        # The reference is what the model computes, to its last digit but one.
        assert torch.allclose((whole @ v).transpose(0, 1).flatten(1), out, rtol=0, atol=1e-5 * out.abs().max())
        some = range(0, len(out), 1 + len(out) // 90)  # in all rows and columns of a grid
        found = [attention.of_query(i, stage, block) for i in some]
        for name, expected in (('both', whole), ('content', content.softmax(2)), ('bias', bias.softmax(2))):
            rows = torch.stack([getattr(one, name) for one in found], dim=1)
            assert rows.shape == (HEADS[stage], len(some), *key_grid)
            assert torch.allclose(rows.sum((2, 3)), torch.ones(1, dtype=torch.float64), rtol=0, atol=1e-12)
            assert (rows.flatten(2) - expected[:, some]).abs().max() < 1e-5
        rows = torch.stack([one.both for one in found], dim=1).flatten(2)
        assert ((rows @ v.double()).transpose(0, 1).flatten(1) - out[some]).abs().max() < 1e-5 * out.abs().max()
        # None of the three is another, so that mixing them up would show.
        assert min((whole - content.softmax(2)).abs().max(), (whole - bias.softmax(2)).abs().max()) > .05
        blocks += 1
    assert blocks == 6


def test_the_flat_resize_is_that_of_the_model(tmp_path):
    model, image = build(tmp_path, interpolation='flat', **AS_IT_IS), scene(96, 128)
    attention = attention_maps.Attention(model, image)
    with torch.no_grad():
        for stage, block, _, _, v, out, _ in computed(model, image):
            rows = torch.stack([attention.of_query(i, stage, block).both for i in range(len(out))], 1).flatten(2)
            assert ((rows @ v.double()).transpose(0, 1).flatten(1) - out).abs().max() < 1e-5 * out.abs().max()


def test_a_point_lies_in_the_query_at_its_place(tmp_path):
    """In an image that is enlarged from 64x96 to 107x160, which is padded to 128x160."""
    attention = attention_maps.Attention(build(tmp_path), scene(64, 96))
    assert attention.size == (107, 160) and attention.key_grid == (4, 5)
    for stage, stride in enumerate((4, 8, 16, 32)):
        columns = 160 // stride
        assert attention.query_at((0, 0), stage) == 0
        assert attention.query_at((95.9, 63.9), stage) == 106 // stride * columns + 159 // stride
        assert attention.query_at((96, 64), stage) < 128 // stride * columns  # the edge itself is in the image
        assert attention.query_at((30, 40), stage) == int(40 * 107 / 64 / stride) * columns + 50 // stride
        one, same = attention.at((30, 40), stage, 0), attention.of_query(attention.query_at((30, 40), stage), stage, 0)
        assert all(map(torch.equal, one, same))


def test_a_padding_in_the_pipeline_moves_no_point(tmp_path):
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 128), keep_ratio=True),
             dict(type='Pad', size=(160, 160)), dict(type='PackSegInputs')]
    image = scene(64, 96)
    attention = attention_maps.Attention(build(tmp_path, **{'test_dataloader.dataset.pipeline': steps}), image)
    assert attention.size == (85, 128) and attention.key_grid == (5, 5)
    assert [m.shape[1:] for m in attention.stage_maps] == [(22, 32), (11, 16), (6, 8), (3, 4)]
    assert attention.query_at((95, 63), 3) == 2 * 5 + 3


def test_attention_lies_over_the_image_where_its_keys_are(tmp_path):
    attention = attention_maps.Attention(build(tmp_path), scene(64, 96))  # 107x160 of 128x160, 4x5 keys
    weights = torch.zeros(4, 5, dtype=torch.float64)
    weights[1, 3] = 1
    rows, columns = np.unravel_index(attention.over_image(weights, (64, 96)).argmax(), (64, 96))
    assert abs(rows + .5 - 48 * 64 / 107) <= 1 and abs(columns + .5 - 112 * 96 / 160) <= 1
    even = attention.over_image(torch.full((4, 5), .05, dtype=torch.float64), (64, 96))
    assert np.allclose(even, .05, atol=1e-6)


def test_the_maps_are_those_of_the_same_pass(tmp_path):
    model, image = build(tmp_path), scene(64, 96)
    maps = attention_maps.Attention(model, image).stage_maps
    for one, other in zip(maps, feature_maps.stage_maps(model, image)):
        assert torch.equal(one, other)
    assert not any(module._forward_hooks for module in model.modules())


def test_pictures_have_a_panel_for_each_head_or_block(tmp_path):
    image = scene(64, 96)
    attention = attention_maps.Attention(build(tmp_path), image)
    sizes = {(stage, block): attention_maps.draw(attention, image, (30, 40), stage, block).size
             for stage, block in ((0, 0), (2, 1), (3, 0), (1, None))}
    wide, narrow = 24 + round(336 * 64 / 96), 24 + round(164 * 64 / 96)
    assert sizes[0, 0] == (1024, wide)  # 1 head
    assert sizes[2, 1] == (1024, 4 * wide + 3 * 8)
    assert sizes[3, 0] == (1024, 4 * narrow + 3 * 8)  # 8 heads in two columns
    assert sizes[1, None] == (1024, 2 * (24 + round(250 * 64 / 96)) + 8)  # the point, the bias, 2 blocks of 2
    panel = attention_maps.draw(attention, image, (48, 32), 0, 0).crop((0, 24, 336, wide))
    colours = np.asarray(panel.convert('RGB')).reshape(-1, 3)
    ring = np.argwhere((np.asarray(panel) == attention_maps.POINT).all(2))
    assert len(np.unique(colours, axis=0)) > 500
    assert np.abs(ring.mean(0) - np.array([112, 168])).max() < 2  # in the middle


def test_backbones_without_attention_are_named(tmp_path):
    image = scene(64, 64)
    with pytest.raises(ModelError, match='the backbone is a ConvNeXt, which has no attention to look at: CMT has'):
        attention_maps.Attention(build_model(read_config(small_models.segmentor(tmp_path, 'ConvNeXt'))), image)
    other = build_model(read_config(tool.ROOT / 'benchmarks/configs/camvid_upernet_r18.py'))
    with pytest.raises(ModelError, match='the backbone is a ResNet'):
        attention_maps.Attention(other, image)


def test_the_command_draws_and_refuses(tmp_path):
    model, image = build(tmp_path), scene(64, 96)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=model.dataset_meta)), tmp_path / 'w.pth')
    cv2.imwrite(str(tmp_path / 'scene.png'), image)
    model.cfg.dump(tmp_path / 'c.py')
    command = ['draw_attention', tmp_path / 'c.py', tmp_path / 'w.pth', tmp_path / 'scene.png', '--device', 'cpu']
    tool.run(*command, '--point', 30, 40, '--block', 2, '--out', tmp_path / 'new' / 'out.png')
    expected = attention_maps.draw(attention_maps.Attention(model, image), image, (30, 40), 2, 1)
    drawn = cv2.imread(str(tmp_path / 'new' / 'out.png'))[..., ::-1]
    assert np.abs(drawn - np.asarray(expected).astype(int)).max() <= 1

    def refusal(*options):
        with pytest.raises(SystemExit) as error:
            tool.run(*command, '--out', tmp_path / 'out.png', *options)
        return str(error.value)

    assert 'the point lies outside of the image, which is 96 x 64' in refusal('--point', 96, 1)
    for options in (['--stage', 5], ['--stage', 4, '--block', 2], ['--block', 0]):
        assert 'the stages 1 to 4 have [1, 2, 2, 1] blocks' in refusal('--point', 1, 1, *options)
