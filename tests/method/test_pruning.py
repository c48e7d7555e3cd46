"""Which video tokens Lite drops."""

import torch

from lmms_eval_vreason.method.pruning import SCORES, kept_tokens


def test_counts_of_uneven_samples():
    """⌊ratio · n⌋ go in each sample; text, padding and the tokens of others never do."""
    video = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    present = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6, [0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    scores = torch.tensor([[0.0, 0, 3, 1, 2, 0], [5, 4, 3, 2, 1, 0], [0] * 6])
    kept = kept_tokens(scores, video, present, 0.5)
    assert kept.tolist() == [
        [False, True, True, False, True, True],
        [True, True, True, False, False, True],
        [False, False, True, True, True, True],
    ]
    assert torch.equal(kept_tokens(scores, video, present, 0.0), present)


def test_random_score_is_seeded_and_independent_of_the_batch():
    video = torch.zeros(2, 12, dtype=torch.bool)
    video[0, 2:10], video[1, 4:12] = True, True
    draw = SCORES["random"](None, video, 7)
    assert torch.equal(draw, SCORES["random"](None, video, 7))
    assert not torch.equal(draw, SCORES["random"](None, video, 8))
    assert torch.equal(draw[0, 2:10], draw[1, 4:12])
    assert len(set(draw[0, 2:10].tolist())) == 8


def test_scores_are_the_norms_of_their_names():
    """Over KV heads and head_dim, in float32 at least."""
    generator = torch.Generator().manual_seed(0)
    layers = [tuple(torch.randn(2, 3, 5, 4, generator=generator).bfloat16() for _ in range(2)) for _ in range(3)]
    norms = [[states.float().square().sum((1, 3)).sqrt() for states in layer] for layer in layers]
    expected = {
        "value_norm": norms[-1][1],
        "key_norm": norms[-1][0],
        "mean_value_norm": sum(values for _, values in norms) / 3,
    }
    assert set(SCORES) == {*expected, "random"}
    for name, reference in expected.items():
        scores = SCORES[name](layers, torch.ones(2, 5, dtype=torch.bool), 0)
        assert scores.dtype == torch.float32
        assert torch.allclose(scores, reference, rtol=1e-6)


def test_of_equal_scores_the_first_go():
    everything = torch.ones(1, 5000, dtype=torch.bool)
    kept = kept_tokens(torch.zeros(1, 5000), everything, everything, 0.5)
    assert kept[0].tolist() == [False] * 2500 + [True] * 2500
