"""Images as each kind of host takes them.

A way of packing gets the tiny config and, for every row of the batch, its images [3, size, size].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Rows = list[list[Tensor]]
Packed = dict[str, Any]
Packing = Callable[[Any, Rows], Packed]


def pictures(numbers: Iterable[int], size: int) -> list[Tensor]:
    """Random images, each fixed by its number."""
    made = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        made.append(torch.randn(3, size, size, generator=generator))
    return made


def laid(rows: Rows) -> Tensor:
    """All images of a batch, one after the other."""
    return torch.stack(list(itertools.chain(*rows)))


def plain(_: Any, rows: Rows) -> Packed:
    return {"pixel_values": laid(rows)}


def sized(config: Any, rows: Rows) -> Packed:
    images = laid(rows)
    return {**plain(config, rows), "image_sizes": torch.tensor([images.shape[-2:]] * len(images))}


def tiles(_: Any, rows: Rows) -> Packed:
    """Every image once as a whole and once as its only tile."""
    images = laid(rows)
    return {
        "pixel_values": torch.stack([images, images.flip(-1)], 1),
        "image_sizes": torch.tensor([images.shape[-2:]] * len(images)),
    }


def number(value: Any) -> int:
    return value[0] if isinstance(value, (list, tuple)) else value


def entry(config: Any, *names: str, otherwise: int) -> int:
    """The first of these entries that the vision config or the whole config has."""
    for part in (getattr(config, "vision_config", config), config):
        for name in names:
            if getattr(part, name, None) is not None:
                return number(getattr(part, name))
    return otherwise


def patches(images: Tensor, patch: int, block: int = 1) -> Tensor:
    """Images [n, 3, s, s] cut to [n, patches, 3, patch, patch], blocks of patches together."""
    n, channels, size, _ = images.shape
    side = size // (patch * block)
    # rows: block, patch in it, pixel; columns alike
    cut = images.reshape(n, channels, side, block, patch, side, block, patch)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(n, -1, channels, patch, patch)


def grid(config: Any, images: Tensor, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Patches of all images end to end, a row each, and (time, height, width) of each image."""
    patch = entry(config, "patch_size", otherwise=4)
    block = entry(config, "spatial_merge_size", "merge_size", "merge_kernel_size", otherwise=1)
    cut = patches(images, patch, block)
    depth = entry(config, "temporal_patch_size", otherwise=1)
    flat = cut[:, :, :, None].expand(-1, -1, -1, depth, -1, -1).flatten(2).flatten(0, 1)
    side = images.shape[-1] // patch
    return flat, torch.tensor([[frames, side, side]] * (len(images) // frames))


def packed(config: Any, rows: Rows) -> Packed:
    values, sizes = grid(config, laid(rows))
    return {"pixel_values": values, "image_grid_thw": sizes}


def unflattened(config: Any, rows: Rows) -> Packed:
    """Packed, each patch [3, height, width]."""
    made = packed(config, rows)
    patch = entry(config, "patch_size", otherwise=4)
    return {**made, "pixel_values": made["pixel_values"].reshape(-1, 3, patch, patch)}


def unmerged(config: Any, rows: Rows) -> Packed:
    """Packed, and into how many patches a side each image's are merged."""
    made = packed(config, rows)
    ones = torch.ones(len(made["image_grid_thw"]), dtype=torch.long)
    return {**made, "image_merge_sizes": ones}


def one_strip(config: Any, rows: Rows) -> Packed:
    """Patches of all images side by side in one wide image, and the shape that they lie in."""
    images = laid(rows)
    patch = entry(config, "patch_size", otherwise=4)
    strip = patches(images, patch).flatten(0, 1).permute(1, 2, 0, 3).flatten(2)[None]
    side = images.shape[-1] // patch
    return {"pixel_values": strip, "target_sizes": torch.tensor([[side, side]] * len(images))}


def strip_of_videos(config: Any, rows: Rows) -> Packed:
    made = one_strip(config, [list(frames(rows))])
    return {f"{name}_videos": value for name, value in made.items()}


def frames(rows: Rows) -> Tensor:
    """Two frames a video, which differ, one after the other."""
    images = laid(rows)
    return torch.stack([images, images.flip(-1)], 1).flatten(0, 1)


def packed_videos(config: Any, rows: Rows) -> Packed:
    values, sizes = grid(config, frames(rows), frames=2)
    return {"pixel_values_videos": values, "video_grid_thw": sizes}


def unflattened_videos(config: Any, rows: Rows) -> Packed:
    made = packed_videos(config, rows)
    patch = entry(config, "patch_size", otherwise=4)
    values = made["pixel_values_videos"].reshape(-1, 3, patch, patch)
    return {**made, "pixel_values_videos": values}


def merged_videos(config: Any, rows: Rows) -> Packed:
    made = packed_videos(config, rows)
    ones = torch.ones(len(made["video_grid_thw"]), dtype=torch.long)
    return {**made, "video_merge_sizes": ones}


def positions(side: int, n: int) -> Tensor:
    """(x, y) of the patches of a square image, for ``n`` images."""
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([xs, ys], -1).reshape(1, -1, 2).expand(n, -1, -1).clone()


def placed(config: Any, rows: Rows) -> Packed:
    """Patches of each image on an axis of their own, and where they lie."""
    images = laid(rows)
    patch = entry(config, "model_patch_size", "patch_size", otherwise=4)
    cut = patches(images, patch).movedim(2, -1).flatten(2)
    where = positions(images.shape[-1] // patch, len(images))
    return {"pixel_values": cut, "image_position_ids": where}


def placed_videos(config: Any, rows: Rows) -> Packed:
    """Patches of every frame of every video, and where they lie."""
    made = placed(config, [list(frames(rows))])
    return {
        "pixel_values_videos": made["pixel_values"],
        "video_position_ids": made["image_position_ids"],
        "num_frames_per_video": torch.full((len(laid(rows)),), 2),
    }


def shaped(config: Any, rows: Rows) -> Packed:
    """Flattened patches, all of them real, and the shape that they lie in."""
    images = laid(rows)
    patch = entry(config, "patch_size", otherwise=4)
    cut = patches(images, patch).movedim(2, -1).flatten(2)
    side = images.shape[-1] // patch
    return {
        "pixel_values": cut,
        "pixel_attention_mask": torch.ones(cut.shape[:2], dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * len(images)),
    }


def nested(_: Any, rows: Rows) -> Packed:
    """An axis for the images of one row, shorter rows filled up with empty images."""
    some = laid(rows)
    most = max(map(len, rows))
    values = some.new_zeros(len(rows), most, *some.shape[1:])
    real = torch.zeros(len(rows), most, *some.shape[2:], dtype=torch.long)
    for i, images in enumerate(rows):
        for j, image in enumerate(images):
            values[i, j], real[i, j] = image, 1
    return {"pixel_values": values, "pixel_attention_mask": real.bool()}


def tiled(config: Any, rows: Rows) -> Packed:
    """Nested, every image one real tile."""
    made = nested(config, rows)
    return {**made, "pixel_attention_mask": made["pixel_attention_mask"].flatten(2).any(-1)}


def blocks(config: Any, rows: Rows) -> Packed:
    """Blocks of patches as small images, their channels last."""
    images = laid(rows)
    side = entry(config, "patch_size", otherwise=4) * entry(
        config, "spatial_merge_size", otherwise=2
    )
    cut = patches(images, side).flatten(0, 1).movedim(1, -1)
    grid = images.shape[-1] // side
    return {"pixel_values": cut, "image_grid_thw": torch.tensor([[1, grid, grid]] * len(images))}


def doubled(config: Any, rows: Rows) -> Packed:
    """Patches as small images, their channels last, each twice in time."""
    cut = patches(laid(rows), entry(config, "patch_size", otherwise=4)).flatten(0, 1)
    return {"pixel_values": cut.movedim(1, -1)[:, None].expand(-1, 2, -1, -1, -1).clone()}


def doubly_sized(_: Any, rows: Rows) -> Packed:
    """Every image small and large."""
    images = laid(rows)
    large = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return {"pixel_values": images, "high_res_pixel_values": large}


def one_crop(_: Any, rows: Rows) -> Packed:
    """An axis for each image's crops, of which there is one."""
    return {"pixel_values": laid(rows)[:, None]}


def clips(_: Any, rows: Rows) -> Packed:
    return {"pixel_values_videos": frames(rows).unflatten(0, (-1, 2))}


def filmed(_: Any, rows: Rows) -> Packed:
    return {"pixel_values": frames(rows).unflatten(0, (-1, 2))}


def rastered(config: Any, rows: Rows) -> Packed:
    """Patches of each image on an axis of their own, channels last."""
    cut = patches(laid(rows), entry(config, "patch_size", otherwise=4))
    return {"pixel_values": cut.movedim(2, -1).flatten(2)}


def flattened(config: Any, rows: Rows) -> Packed:
    """Patches of each image, before each its row and its column."""
    cut = rastered(config, rows)["pixel_values"]
    side = int(cut.shape[1] ** 0.5)
    where = positions(side, len(cut)).flip(-1) + 1
    return {"flattened_patches": torch.cat([where.to(cut), cut], -1)}


def one_tiled(config: Any, rows: Rows) -> Packed:
    """An axis for the images of one row and one for each image's only tile."""
    return {"pixel_values": nested(config, rows)["pixel_values"][:, :, None]}


def cropped(config: Any, rows: Rows) -> Packed:
    """Every image once as a whole and once as its only crop."""
    made = tiles(config, rows)
    side = entry(config, "image_size", otherwise=16) // entry(config, "patch_size", otherwise=4)
    n = len(made["image_sizes"])
    return {
        "image_pixel_values": made["pixel_values"],
        "image_sizes": made["image_sizes"],
        "image_attention_mask": torch.ones(n, 2, side, side, dtype=torch.bool),
    }


def hw_packed(config: Any, rows: Rows) -> Packed:
    """Packed, (height, width) of each image."""
    cut = patches(laid(rows), entry(config, "patch_size", otherwise=4))
    side = int(cut.shape[1] ** 0.5)
    sizes = torch.tensor([[side, side]] * len(cut))
    return {"pixel_values": cut.flatten(2).flatten(0, 1), "image_grid_hw": sizes}


def tubelets(_: Any, rows: Rows) -> Packed:
    """Two frames of a video on the axis of channels."""
    return {"pixel_values_videos": frames(rows).unflatten(0, (-1, 1, 2)).flatten(2, 3)}


def pooling(n: int) -> Tensor:
    """Which of 4 x 4 patches each of 2 x 2 places pools, for ``n`` images after one another."""
    block = torch.arange(16).reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    return torch.cat([block + 16 * i for i in range(n)])


def pooled(config: Any, rows: Rows) -> Packed:
    """Patches of each image, and which of them each place pools."""
    cut = rastered(config, rows)["pixel_values"]
    n = len(cut)
    return {
        "pixel_values": cut,
        "image_token_pooling": pooling(n),
        "image_grids": torch.tensor([[2, 2, 0, 0]] * n),
        "image_num_crops": torch.ones(n, dtype=torch.long),
    }


def pooled_videos(config: Any, rows: Rows) -> Packed:
    shown = frames(rows)
    cut = patches(shown, entry(config, "patch_size", otherwise=4)).movedim(2, -1).flatten(2)
    return {
        "pixel_values_videos": cut,
        "video_token_pooling": pooling(len(cut)),
        "video_grids": torch.tensor([[2, 2, 2]] * (len(cut) // 2)),
    }


def by_signature(taken: set[str]) -> Packing:
    """The way that these arguments ask for."""
    if "image_grid_thw" in taken:
        return packed
    if "image_position_ids" in taken:
        return placed
    if "spatial_shapes" in taken:
        return shaped
    if "pixel_attention_mask" in taken:
        return nested
    return sized if "image_sizes" in taken else plain
