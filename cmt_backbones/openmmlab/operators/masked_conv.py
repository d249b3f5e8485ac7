"""The two halves of mmcv's masked convolution, which computes at some places only (inference, batch of 1)."""
import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor, kernel_h: int,
                          kernel_w: int, pad_h: int, pad_w: int) -> None:
    """Writes the windows of `im` (1, C, H, W) at K places into `col` (C * kernel_h * kernel_w, K)."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]  # (kernel_h, 1, K)
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]  # (kernel_w, K)
    col.copy_(padded[:, rows, columns].reshape(col.shape))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int,
                          channels: int) -> None:
    """Writes `col` (C, K) to K places of `im` (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col
