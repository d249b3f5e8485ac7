"""What resizing does to a position bias, by tools/draw_position_bias.py."""
import cv2

import tool


def test_geometric_and_flat(tmp_path, capsys):
    tool.run('draw_position_bias', '--out', tmp_path / 'bias.png', '--shape', '320', '448')
    printed = capsys.readouterr().out.splitlines()
    numbers = {line[:12].strip(): [float(number) for number in line[12:].split()] for line in printed[1:4]}
    assert {*numbers} == {'near', 'same row', 'same column'}
    assert all(geometric > 0.98 for geometric, _ in numbers.values())
    assert numbers['same column'][1] < 0.3 and numbers['near'][1] < 0.6
    assert cv2.imread(str(tmp_path / 'bias.png')).shape[1] > 1000
