import torch
from torchvision.transforms import v2

from data.augment import MEAN, STD, Transform, center_crop, random_crop_flip


def pictures(batch=6, side=9):
    return torch.randint(256, (batch, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def windows(picture, crop):
    """Every window of a picture, and whether it is mirrored."""
    side = len(picture)
    for top in range(side - crop + 1):
        for left in range(side - crop + 1):
            window = picture[top : top + crop, left : left + crop]
            yield window, (top, left, False)
            yield window.flip(1), (top, left, True)


def test_each_picture_gets_a_window_of_its_own():
    images = pictures(batch=40)
    out = random_crop_flip(images, 6, seed=3, iteration=5)
    assert out.shape == (40, 6, 6, 3)
    found = []
    for picture, seen in zip(images, out, strict=True):
        matches = [where for window, where in windows(picture, 6) if torch.equal(window, seen)]
        assert len(matches) == 1
        found += matches
    tops, lefts, flips = zip(*found, strict=True)
    assert set(tops) == set(lefts) == {0, 1, 2, 3}
    assert 8 < sum(flips) < 32


def test_draws_are_a_function_of_seed_and_iteration():
    images = pictures(batch=30)
    one = random_crop_flip(images, 6, 3, 5)
    torch.manual_seed(99)
    assert torch.equal(one, random_crop_flip(images, 6, 3, 5))
    assert not torch.equal(one, random_crop_flip(images, 6, 3, 6))
    assert not torch.equal(one, random_crop_flip(images, 6, 4, 5))


def test_a_crop_as_large_as_the_picture_only_flips():
    images = pictures(batch=20)
    for picture, seen in zip(images, random_crop_flip(images, 9, 0, 0), strict=True):
        assert torch.equal(seen, picture) or torch.equal(seen, picture.flip(1))


def test_center_is_torchvisions():
    for side, crop in ((9, 6), (10, 7), (256, 224), (7, 7)):
        images = pictures(2, side)
        expected = v2.CenterCrop(crop)(images.permute(0, 3, 1, 2))
        assert torch.equal(center_crop(images, crop).permute(0, 3, 1, 2), expected)


def test_normalised_as_torchvision_does_in_channels_last():
    images = pictures()
    expected = v2.Normalize(MEAN, STD)(v2.CenterCrop(6)(images.permute(0, 3, 1, 2)).float() / 255)
    seen = Transform(6).center(images)
    torch.testing.assert_close(seen, expected)
    assert seen.dtype == torch.float32
    assert Transform(6, seed=3).random(images, 5).is_contiguous(memory_format=torch.channels_last)


def test_training_sees_the_normalised_window():
    view, images = Transform(6, seed=3), pictures()
    window = random_crop_flip(images, 6, 3, 5)
    expected = v2.Normalize(MEAN, STD)(window.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(view.random(images, 5), expected)
