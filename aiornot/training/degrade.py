"""What happens to an image on its way through the net: scaled, blurred, compressed.

``aiornot train --set jpeg=0.5 --set rescale=0.25``. The order is that of an upload: first the
picture is made smaller, then softened, and the file is written last. After each step there are
whole grey levels, because each program in that chain hands the next one 8-bit pixels.

Every sample has its own strength, so no shape may depend on it. Scaling and blur are therefore
matrices, one per sample and side, (N, S, S): one multiplication from the left and one from the
right of the image.
"""

import torch
from torch import Tensor

from aiornot.training import jpeg


def degrade(
    pixels: Tensor,
    *,
    scale: Tensor | None,
    sigma: Tensor | None,
    quality: Tensor | None,
    tables: jpeg.Tables,
) -> Tensor:
    """Degrade a batch of pixels (N, 3, H, W) in 0..1.

    Args:
        scale: (N,) see ``rescale``; None leaves the operation out of the graph, here and below.
        sigma: (N,) see ``blur``.
        quality: (N,) see ``jpeg.compress``.
        tables: Those of the device.

    Returns:
        Whole grey levels over 255, as a file would hold; a sample that none of the three touches
        is returned as it came.
    """
    if scale is None and sigma is None and quality is None:
        return pixels
    levels = _whole(pixels * 255)
    touched = torch.zeros_like(pixels[:, 0, 0, 0], dtype=torch.bool)
    if scale is not None:
        levels, touched = rescale(levels, scale=scale), touched | (scale < 1)
    if sigma is not None:
        levels, touched = blur(levels, sigma=sigma), touched | (sigma > 0)
    if quality is not None:
        levels = jpeg.compress(levels, quality=quality, tables=tables)
        touched = touched | torch.isfinite(quality)
    return torch.where(touched.view(-1, 1, 1, 1), levels / 255, pixels)


def rescale(levels: Tensor, *, scale: Tensor) -> Tensor:
    """Scale each sample down to its share (N,) of the side and up again, bicubic and antialiased.

    Args:
        levels: (N, C, H, W) whole grey levels 0..255.
        scale: 1 changes nothing, exactly.
    """
    height, width = levels.shape[2:]
    rows = there_and_back(scale, side=height)
    columns = rows if width == height else there_and_back(scale, side=width)
    for for_rows, for_columns in zip(rows, columns, strict=True):
        # Pillow rounds between the two sides as well.
        levels = _whole(across(levels, columns=for_columns))
        levels = _whole(along(levels, rows=for_rows))
    return levels


def there_and_back(scale: Tensor, *, side: int) -> tuple[Tensor, Tensor]:
    """Return the two matrices (N, S, S) that scale a side of S pixels down and up again.

    The small image fills the first pixels of the side; what lies beyond them is zero.
    """
    small = torch.round(scale * side).clamp(min=1)
    large = torch.full_like(small, side)
    return (
        _resampling(source=large, target=small, side=side),
        _resampling(source=small, target=large, side=side),
    )


def _resampling(*, source: Tensor, target: Tensor, side: int) -> Tensor:
    """Return the matrices (N, S, S) that resample ``source`` (N,) pixels to ``target`` (N,).

    Pillow's bicubic: made wider when scaling down, cut off and normalised at the edges.
    """
    place = torch.arange(side, device=source.device)
    row, column = place.view(-1, 1), place
    source, target = source.view(-1, 1, 1), target.view(-1, 1, 1)
    # The distance between pixel centres, over one division: the whole numbers are exact.
    apart = (2 * column + 1) * target - (2 * row + 1) * source
    distance = apart.abs() / (2 * torch.maximum(source, target))
    weights = torch.where((row < target) & (column < source), _cubic(distance), 0.0)
    return weights / torch.where(row < target, weights.sum(2, keepdim=True), 1.0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, which Pillow and antialiased torchvision use."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def blur(levels: Tensor, *, sigma: Tensor) -> Tensor:
    """Blur each sample by a Gaussian of its standard deviation (N,) in pixels.

    Args:
        levels: (N, C, H, W) whole grey levels 0..255.
        sigma: 0 changes nothing, exactly.
    """
    height, width = levels.shape[2:]
    rows = gaussian(sigma, side=height)
    columns = rows if width == height else gaussian(sigma, side=width)
    return _whole(along(across(levels, columns=columns), rows=rows))


def gaussian(sigma: Tensor, *, side: int) -> Tensor:
    """Return the matrices (N, S, S) that blur a side of S pixels, mirrored at its ends.

    The bell is not cut off: in a matrix the far weights cost nothing.
    """
    place = torch.arange(side, device=sigma.device)
    row, column, last = place.view(-1, 1), place, side - 1
    # Not 0, which would be 0 / 0; at 1/100 pixel the neighbour's weight, exp(-5000), is 0.
    distance = torch.arange(2 * side, device=sigma.device) / sigma.clamp(min=0.01).view(-1, 1)
    bell = torch.exp(-0.5 * distance.square())
    direct, before = bell[:, (row - column).abs()], bell[:, row + column]
    after = bell[:, 2 * last - row - column]
    # The mirror is the edge pixel itself, which is not seen twice.
    mirrored = torch.where(column > 0, before, 0.0) + torch.where(column < last, after, 0.0)
    weights = direct + mirrored
    return weights / weights.sum(2, keepdim=True)


def across(levels: Tensor, *, columns: Tensor) -> Tensor:
    """Apply each sample's matrix (N, W, W) to the rows of its image (N, C, H, W)."""
    return torch.einsum("nxw,nchw->nchx", columns, levels)


def along(levels: Tensor, *, rows: Tensor) -> Tensor:
    """Apply each sample's matrix (N, H, H) to the columns of its image (N, C, H, W)."""
    return torch.einsum("nyh,nchw->ncyw", rows, levels)


def _whole(levels: Tensor) -> Tensor:
    """Round to whole grey levels."""
    return torch.floor(levels + 0.5).clamp(0, 255)
