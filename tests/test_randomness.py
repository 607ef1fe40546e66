import torch

from vae_lightning.randomness import BatchedNoise, Noise, derive_seed, generator, uniform


def test_numbers_never_change():
    """Another version of the package or of torch has to draw the same."""
    assert derive_seed(0, "train", 3) == 882505000269604046
    # By the formulas of SplitMix64 in Python's own integers.
    expected = torch.tensor([[12578689, 6247725], [16064773, 7594687]]) * 2.0**-24
    assert uniform(torch.tensor([0, 7]), 2, 1).equal(expected)


def test_uniform_numbers_fill_the_open_interval_evenly():
    u = uniform(torch.arange(100_000), 4, seed=3)
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u, bins=50, min=0, max=1)
    expected = u.numel() / 50
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 20 < chi_squared < 100  # 49 degrees of freedom


def test_normal_numbers_have_the_moments_of_a_normal():
    z = Noise(torch.arange(200_000), 0).normal(3)
    assert z.mean(0).abs().max() < 0.01
    assert (z.var(0) - 1).abs().max() < 0.02
    assert (z.pow(4).mean(0) - 3).abs().max() < 0.1


def test_neighbours_are_uncorrelated():
    z = Noise(torch.arange(100_000), 0).normal(2)
    pairs = [(z[1:, 0], z[:-1, 0]), (z[:, 0], z[:, 1])]
    z_other = Noise(torch.arange(100_000), 1).normal(2)
    pairs.append((z[:, 0], z_other[:, 0]))
    for a, b in pairs:
        assert abs((a * b).mean()) < 0.015


def test_noise_of_an_image_does_not_depend_on_its_batch():
    whole = Noise(torch.arange(10), 5, "val").normal(4)
    torch.testing.assert_close(Noise(torch.tensor([7, 2]), 5, "val").normal(4), whole[[7, 2]])


def test_later_numbers_of_a_longer_row_can_be_drawn_alone():
    whole = Noise(torch.arange(10), 5).normal(9)
    part = Noise(torch.arange(10), 5).normal(3, first=4)
    assert part.equal(whole[:, 4:7])
    assert uniform(torch.arange(3), 2, 1, first=3).equal(uniform(torch.arange(3), 5, 1)[:, 3:])


def test_draws_keys_and_images_differ():
    noise = Noise(torch.arange(4), 1, "train", 0)
    first, second = noise.normal(5), noise.normal(5)
    other_step = Noise(torch.arange(4), 1, "train", 1).normal(5)
    other_seed = Noise(torch.arange(4), 2, "train", 0).normal(5)
    draws = torch.cat([first, second, other_step, other_seed])
    assert len(draws.unique(dim=0)) == 16


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    generator(1, "a").get_state()
    torch.rand(3, generator=generator(1, "a"))
    Noise(torch.arange(3), 1).normal(2)
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_noise_ahead_is_that_of_each_batch():
    """Bit for bit, whatever is drawn, in whatever order; the last batch is smaller."""
    index = torch.randperm(50)[:22]
    keys = [(5, "train", step) for step in (7, 8, 9)]
    ahead = BatchedNoise(index, 8, keys)
    for i, part in ((1, index[8:16]), (0, index[:8]), (2, index[16:])):
        found, expected = ahead.part(i), Noise(part, *keys[i])
        for draw in ("normal", "uniform", "normal"):
            assert getattr(found, draw)(6).equal(getattr(expected, draw)(6))
        assert found.normal(2, first=3).equal(expected.normal(2, first=3))
        assert found.normal(2, first=5).equal(expected.normal(2, first=5))
        assert found.index.equal(part)


def test_noise_ahead_may_be_changed_in_place():
    ahead = BatchedNoise(torch.arange(6), 3, [(1, 0), (1, 1)])
    sigma = torch.tensor(2.0, requires_grad=True)
    for i in range(2):
        z = ahead.part(i).normal(2).mul_(sigma)
        z.sum().backward()
        assert z.equal(2 * Noise(torch.arange(6)[3 * i : 3 * i + 3], 1, i).normal(2))


def test_only_generators_depend_on_the_number_of_the_batch():
    index = torch.arange(4)
    first, second = (Noise(index, 0, "val", batch=batch) for batch in (0, 1))
    assert first.normal(3).equal(second.normal(3))
    draws = [torch.rand(5, generator=noise.generator("prior")) for noise in (first, second)]
    assert not draws[0].equal(draws[1])
    assert torch.rand(5, generator=second.restart().generator("prior")).equal(draws[1])
