"""What Llama 4's image processor and vision tower make of pixels in bytes."""

import torch


def numbers_of(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the image processor makes of pixels in bytes, tile by tile, rounded as it rounds."""
    numbers = torch.empty(pixels.shape, dtype=torch.bfloat16)
    for bytes_of_tile, tile in zip(pixels, numbers, strict=True):  # one at a time stays in a core's cache
        # The processor multiplies by 1/255, subtracts 0.5 and divides by 0.5; rounding does not mind a factor of two.
        tile.copy_(bytes_of_tile).mul_(2 / 255).sub_(1)
    return numbers.to(dtype)


def patches_of(tiles: torch.Tensor, side: int) -> torch.Tensor:
    """Tiles (tiles, channels, height, width) cut as torch.nn.Unfold cuts: (tiles, patches, channels x side x side)."""
    count, channels, height, width = tiles.shape
    rows, columns = height // side, width // side
    cut = tiles.view(count, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(count, rows * columns, channels * side * side)
