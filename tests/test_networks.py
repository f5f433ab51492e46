"""Laws of the networks, one by one for each family, and of the programs that compare and time them."""

from typing import get_args

import pytest
import torch

from medisent.networks import Decoder, Encoder, Family, MaskDecoder, halved

FAMILIES = get_args(Family)
SHAPES = [(16, 16, 16), (20, 14, 33)]


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of benchmarks, importable."""
    monkeypatch.syspath_prepend("examples/benchmarks")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_scans_and_masks_come_out_on_the_grid_whatever_its_shape(family, shape):
    encoder = Encoder(shape, 8, 4, family=family)
    image = torch.rand(2, 1, *shape)
    features = encoder(halved(image, encoder.padded))
    assert features[-1][0].numel() == encoder.bottom_size
    assert MaskDecoder(encoder, 3)(features, image).shape == (2, 3, *shape)
    assert Decoder(encoder, 5)(torch.randn(2, 5)).shape == (2, 1, *shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_hears_of_the_masks_or_of_the_picture(family):
    encoder = Encoder((20, 20, 20), 8, 4, family=family)
    masks, decoder = MaskDecoder(encoder, 1), Decoder(encoder, 3)
    image = torch.rand(2, 1, 20, 20, 20)
    seen = masks(encoder(halved(image, encoder.padded)), image)
    (seen * torch.rand_like(seen)).sum().backward()
    drawn = decoder(torch.randn(2, 3))
    (drawn * torch.rand_like(drawn)).sum().backward()
    for part in (encoder, masks, decoder):
        for name, weight in part.named_parameters():
            assert weight.grad is not None, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [*SHAPES, (6, 6, 6)])
def test_no_decoder_is_linear(family, shape):
    decoder = Decoder(Encoder(shape, 8, 4, family=family), 3)
    one, other = torch.randn(2, 1, 3)
    drawn = [decoder(latents) for latents in (torch.zeros(1, 3), one, other, one + other)]
    curved = drawn[3] - drawn[1] - drawn[2] + drawn[0]
    assert curved.square().mean() > 1e-4 * (drawn[1] - drawn[0]).square().mean()


def test_every_voxel_reaches_the_lean_networks():
    encoder = Encoder((16, 16, 16), 8, 4, family="lean", normalised=False)
    image = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    encoder(halved(image, encoder.padded))[-1].square().sum().backward()
    assert image.grad.ne(0).all()


def test_families_of_networks_are_compared_in_one_go(benchmarks, tmp_path):
    import networks

    asked = networks.Asked(
        side=16, heads=4, seconds=0.01, seeds=1, repeats=1, memory_sides=(), families=("lean", "monai")
    )
    found = networks.measured(asked)
    assert 1 in found["monai"].step.values()  # in the precision that was faster
    for row in found.values():
        assert row.steps[0] > 0
        assert row.nats[0] < 1.4  # a picture without any error has 1.38 nats a voxel
    lines = networks.table(found, ()).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    networks.draw(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 0


def test_families_that_are_compared_for_equal_size_have_as_many_parameters(benchmarks):
    from families import FAMILIES, REFERENCE

    trained = {name: family for name, family in FAMILIES.items() if family.trained}
    sizes = {name: sum(p.numel() for p in family.build((64, 64, 64)).parameters()) for name, family in trained.items()}
    for name, size in sizes.items():
        assert size == pytest.approx(sizes[REFERENCE], rel=0.05), name


def test_a_step_is_timed_against_the_roofline_and_weighed_without_a_gpu(benchmarks, tmp_path):
    import gpu

    sizes = gpu.Sizes(side=16, large=16, batch=1, matrix=32, repeats=1)
    bench = gpu.Bench("cpu", tmp_path, sizes)
    text = gpu.table([*bench.steps(), bench.memory()])
    assert "bfloat16" in text
    assert "float32" in text
    assert "GiB" in text


@pytest.mark.slow
def test_all_that_is_measured_on_a_gpu_can_be_tried_out_without(benchmarks, tmp_path):
    import gpu

    text = gpu.table(gpu.Bench("cpu", tmp_path, gpu.SMALL).rows())
    assert "explaining" in text
