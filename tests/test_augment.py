import colorsys

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.transforms import v2

from plumage.data import augment
from plumage.data.augment import (
    EIGENVALUES,
    EIGENVECTORS,
    MEAN,
    STD,
    YIQ,
    Transform,
    apply_colours,
    center_crop,
    colour_maps,
    mixup,
    random_colours,
    random_crop_flip,
    random_windows,
    resized_crop,
)

MODES = [(mode, alpha) for mode in ("crop", "resized-crop", "paper") for alpha in (0.0, 0.2)]
LABELS = torch.tensor([0, 3, 1, 2, 4, 3])


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


def normalised(images):
    """torchvision's, of (b, h, w, 3) from 0 to 255."""
    return v2.Normalize(MEAN, STD)(images.permute(0, 3, 1, 2).float() / 255)


def test_evaluation_sees_the_normalised_centre():
    images = pictures()
    seen = Transform(6).center(images)
    torch.testing.assert_close(seen, normalised(center_crop(images, 6)))
    assert seen.dtype == torch.float32
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_training_sees_the_normalised_window():
    images = pictures()
    seen, targets = Transform(6, seed=3).random(images, LABELS, 5)
    torch.testing.assert_close(seen, normalised(random_crop_flip(images, 6, 3, 5)))
    assert targets is LABELS


@pytest.mark.parametrize(("mode", "alpha"), MODES)
def test_every_mode_gives_float32_in_channels_last(mode, alpha):
    view, images = Transform(6, 3, mode, alpha, 5), pictures()
    seen, targets = view.random(images, LABELS, 5)
    assert seen.shape == (6, 3, 6, 6)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert (targets.shape, targets.dtype) == (((6, 5), torch.float32) if alpha else ((6,), torch.int64))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = view.random(images, LABELS, 5)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, seen)


@pytest.mark.parametrize(("mode", "alpha"), MODES)
def test_a_step_is_a_function_of_seed_and_iteration(mode, alpha):
    view, images = Transform(6, 3, mode, alpha, 5), pictures()
    one = view.random(images, LABELS, 5)
    torch.manual_seed(99)
    np.random.seed(99)
    two = view.random(images, LABELS, 5)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    for other in (view.random(images, LABELS, 6), Transform(6, 4, mode, alpha, 5).random(images, LABELS, 5)):
        assert not torch.equal(one[0], other[0])
        assert alpha == 0 or not torch.equal(one[1], other[1])


@pytest.mark.parametrize("mode", ["crop", "resized-crop", "paper"])
def test_without_flip_left_stays_left(mode):
    """Of grey pictures that get brighter to the right, and stay so at every draw of the window and the colours."""
    images = (torch.arange(12, dtype=torch.uint8) * 20).expand(64, 12, 12)[..., None].expand(64, 12, 12, 3)
    labels = torch.zeros(64, dtype=torch.int64)

    def rises(flip):
        seen, _ = Transform(8, 3, mode, flip=flip).random(images, labels, 5)
        return (seen[..., -1] > seen[..., 0]).flatten(1).all(dim=1)

    mirrored = ~rises(True)
    assert 16 < mirrored.sum() < 48
    assert rises(False).all()
    one, other = (Transform(8, 3, mode, flip=flip).random(images, labels, 5)[0][~mirrored] for flip in (True, False))
    assert torch.equal(one, other)  # the other draws are the same


@pytest.mark.parametrize("draw", [random_windows, random_colours])
def test_each_draw_is_a_function_of_seed_and_iteration(draw):
    one = draw(6, 3, 5)
    assert all(map(np.array_equal, one, draw(6, 3, 5)))
    for other in (draw(6, 3, 6), draw(6, 4, 5)):
        assert not any(map(np.array_equal, one, other))


def test_modes_are_made_of_their_parts():
    images = pictures()
    views = resized_crop(images, *random_windows(6, 3, 5), 6)
    torch.testing.assert_close(Transform(6, 3, "resized-crop").random(images, LABELS, 5)[0], normalised(views))
    coloured = apply_colours(views, *colour_maps(*random_colours(6, 3, 5))).permute(0, 3, 1, 2)
    assert torch.equal(Transform(6, 3, "paper").random(images, LABELS, 5)[0], coloured)
    mixed, targets = Transform(6, 3, "paper", 0.2, 5).random(images, LABELS, 5)
    lam = targets[0, LABELS[0]].item()
    torch.testing.assert_close(mixed, lam * coloured + (1 - lam) * coloured.roll(1, 0))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 12, 12), (3, 1, 5, 7), (2, 4, 10, 8), (0, 6, 6, 6), (1, 2, 11, 10)])
def test_a_window_is_resized_as_torchvision_does(box, flip):
    images, crop = pictures(2, 12), 8
    windows = np.array([box, box]).T / 12
    seen = resized_crop(images, windows, np.array([flip, False]), crop)
    planes = images.permute(0, 3, 1, 2).float()
    expected = v2.functional.resized_crop(planes, *box, [crop, crop], antialias=False).permute(0, 2, 3, 1)
    # At its border torchvision repeats the window's last pixel where the true neighbour is taken here: compare those
    # pixels that lie between the centres of the window's own.
    inside = [np.abs((np.arange(crop) + 0.5) / crop * size - size / 2) <= (size - 1) / 2 for size in box[2:]]
    inside = torch.from_numpy(np.outer(*inside))
    assert inside.sum() >= 36
    if flip:
        seen[0] = seen[0].flip(1)
    torch.testing.assert_close(seen[:, inside], expected[:, inside], atol=2e-3, rtol=0)
    if box[2:] == (12, 12):
        assert inside.all()


def test_beyond_the_picture_its_border_is_repeated():
    images = pictures(2, 5)
    seen = resized_crop(images, np.array([[0, 0, 1, 1]] * 2).T, np.zeros(2, bool), 8)
    expected = functional.interpolate(images.permute(0, 3, 1, 2).float(), (8, 8), mode="bilinear")
    torch.testing.assert_close(seen.permute(0, 3, 1, 2), expected, atol=2e-3, rtol=0)


def test_windows_are_distributed_as_torchvisions():
    (top, left, height, width), flip = random_windows(20_000, 0, 0)
    area, ratio = height * width, width / height
    assert 0.08 <= area.min() < 0.081
    assert 0.99 < area.max() <= 1
    assert 3 / 4 <= ratio.min() + 1e-12 < 0.76
    assert 1.32 < ratio.max() - 1e-12 <= 4 / 3
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-12
    assert abs(flip.mean() - 0.5) < 0.02

    torch.manual_seed(0)
    picture = torch.empty(3, 1000, 1000)
    draws = [v2.RandomResizedCrop(8).make_params([picture]) for _ in range(4000)]
    theirs = {name: np.array([draw[name] for draw in draws]) / 1000 for name in ("top", "left", "height", "width")}
    for mine, name in ((top, "top"), (left, "left"), (height, "height"), (width, "width")):
        assert abs(mine.mean() - theirs[name].mean()) < 0.02, name
    assert abs(area.mean() - (theirs["height"] * theirs["width"]).mean()) < 0.02
    their_log = np.log(theirs["width"] / theirs["height"])
    assert abs(np.log(ratio).mean() - their_log.mean()) < 0.02
    assert abs(np.log(ratio).std() - their_log.std()) < 0.02


def test_a_pictures_window_does_not_depend_on_those_after_it():
    few, many = random_windows(5, 1, 2), random_windows(9, 1, 2)
    assert np.array_equal(few[0], many[0][:, :5])
    assert np.array_equal(few[1], many[1][:5])


def test_where_no_window_fits_the_whole_picture_is_taken(monkeypatch):
    class Largest:
        """Windows of the whole area and ratio 4/3: wider than the picture."""

        def random(self, size):
            return np.full(size, 0.999)

    monkeypatch.setattr(augment, "generator", lambda *purpose: Largest())
    windows, _ = random_windows(3, 0, 0)
    assert np.array_equal(windows, np.array([[0, 0, 1, 1]] * 3).T)


def coloured(images, hue=1.0, saturation=1.0, brightness=1.0, noise=(0, 0, 0)):
    """(b, h, w, 3) uint8 → the same of RGB from 0 to 1, the normalisation taken back."""
    batch = len(images)
    coefficients = np.array([[hue] * batch, [saturation] * batch, [brightness] * batch])
    out = apply_colours(images.float(), *colour_maps(coefficients, np.array([noise] * batch, float)))
    return out * torch.tensor(STD) + torch.tensor(MEAN)


def test_neutral_colours_are_the_normalisation():
    images = pictures()
    matrix, shift = colour_maps(np.ones((3, 6)), np.zeros((6, 3)))
    np.testing.assert_allclose(matrix, np.tile(np.diag(1 / (255 * np.array(STD))), (6, 1, 1)), atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(apply_colours(images.float(), matrix, shift).permute(0, 3, 1, 2), normalised(images))


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.4])
def test_brightness_and_saturation_are_torchvisions(factor):
    images = pictures() // 4 + 90  # so that neither clamps
    planes = images.permute(0, 3, 1, 2) / 255
    expected = v2.functional.adjust_brightness(planes, factor).permute(0, 2, 3, 1)
    torch.testing.assert_close(coloured(images, brightness=factor), expected)
    # torchvision's luminance weighs red by 0.2989.
    expected = v2.functional.adjust_saturation(planes, factor).permute(0, 2, 3, 1)
    torch.testing.assert_close(coloured(images, saturation=factor), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("hue", [0.6, 0.85, 1.2, 1.4])
def test_hue_is_a_rotation_in_yiq(hue):
    images = pictures(2, 4)
    seen = coloured(images, hue=hue)
    angle = (hue - 1) * np.pi
    for before, after in zip(images.flatten(0, 2) / 255, seen.flatten(0, 2), strict=True):
        y, i, q = colorsys.rgb_to_yiq(*before.tolist())
        turned = i * np.cos(angle) - q * np.sin(angle), i * np.sin(angle) + q * np.cos(angle)
        # colorsys rounds the luminance's weights to 0.30, 0.59, 0.11 and clamps on the way back, so compare in YIQ.
        np.testing.assert_allclose(colorsys.rgb_to_yiq(*after.tolist()), (y, *turned), atol=0.015)


def test_hue_and_saturation_leave_grey_and_luminance_as_they_are():
    grey = torch.arange(0, 256, 5, dtype=torch.uint8)[None, None, :, None].expand(2, 1, -1, 3)
    torch.testing.assert_close(coloured(grey, hue=1.37, saturation=0.7), grey / 255)
    images, luminance = pictures(), torch.from_numpy(YIQ[0]).float()
    seen = coloured(images, hue=1.37, saturation=0.7)
    torch.testing.assert_close(seen @ luminance, images / 255 @ luminance)


def test_colours_are_applied_in_the_papers_order():
    images = pictures()
    seen = coloured(images, 1.3, 0.7, 1.2, (0.1, -0.2, 0.05))
    hued = coloured(images, hue=1.3)
    saturated = 0.7 * hued + 0.3 * (hued @ torch.from_numpy(YIQ[0]).float())[..., None]
    torch.testing.assert_close(seen, 1.2 * saturated + torch.tensor([0.1, -0.2, 0.05]))


def test_each_picture_has_colours_of_its_own():
    images = pictures(1).expand(3, -1, -1, -1)
    coefficients, noise = random_colours(3, 0, 0)
    seen = apply_colours(images.float(), *colour_maps(coefficients, noise))
    for one in range(3):
        maps = colour_maps(coefficients[:, one : one + 1], noise[one : one + 1])
        torch.testing.assert_close(seen[one : one + 1], apply_colours(images[:1].float(), *maps))
    assert not torch.allclose(seen[0], seen[1])


def test_colours_are_distributed_as_in_the_paper():
    coefficients, noise = random_colours(100_000, 0, 0)
    assert np.allclose(coefficients.min(1), 0.6, atol=1e-3)
    assert np.allclose(coefficients.max(1), 1.4, atol=1e-3)
    assert np.allclose(np.cov(coefficients), np.eye(3) * 0.8**2 / 12, atol=1e-3)
    # In the basis of the eigenvectors, so that the two small components count as much as the large one.
    assert np.allclose(EIGENVECTORS.T @ EIGENVECTORS, np.eye(3), atol=1e-3)
    shift = colour_maps(coefficients, noise)[1].astype(float) * STD + MEAN
    expected = 0.01 * EIGENVECTORS @ np.diag(EIGENVALUES**2) @ EIGENVECTORS.T
    assert np.allclose(np.cov(shift.T), expected, atol=0.02 * expected.max())
    scaled = shift @ EIGENVECTORS / (0.1 * EIGENVALUES)
    assert np.allclose(scaled.mean(0), 0, atol=0.02)
    assert np.allclose(np.cov(scaled.T), np.eye(3), atol=0.05)


def test_mixup_by_hand():
    images = torch.tensor([1.0, 2.0, 4.0])[:, None, None, None].expand(3, 2, 2, 3)
    mixed, targets = mixup(images, torch.tensor([2, 0, 0]), 4, 0.75)
    assert torch.equal(mixed[:, 1, 1, 2], torch.tensor([0.75 * 1 + 0.25 * 4, 0.75 * 2 + 0.25 * 1, 0.75 * 4 + 0.25 * 2]))
    assert torch.equal(targets, torch.tensor([[0.25, 0, 0.75, 0], [0.75, 0, 0.25, 0], [1, 0, 0, 0]]))


def test_mixup_is_torchvisions():
    torch.manual_seed(7)
    images, labels = torch.rand(5, 3, 4, 4), torch.tensor([0, 1, 2, 3, 4])
    expected, expected_targets = v2.MixUp(alpha=1.0, num_classes=5)(images, labels)
    mixed, targets = mixup(images, labels, 5, expected_targets[0, 0].item())
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(targets, expected_targets)
    assert 0.05 < expected_targets[0, 0] < 0.95


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixups_lambda_is_beta_distributed(alpha):
    view, images = Transform(1, 0, mixup=alpha, classes=2), pictures(2, 1)
    rows = torch.stack([view.random(images, torch.tensor([0, 1]), step)[1] for step in range(4000)])
    torch.testing.assert_close(rows.sum(-1), torch.ones(4000, 2))
    lams = rows[:, 0, 0]
    assert abs(lams.mean() - 0.5) < 0.025
    assert abs(lams.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
