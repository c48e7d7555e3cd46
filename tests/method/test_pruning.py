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
