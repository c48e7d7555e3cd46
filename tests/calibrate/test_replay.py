"""A replay chooses the tokens that it is given, and measures the distributions that they are chosen from."""

import numpy as np
import pytest
from random_model import END, VOCABULARY, batch, prompt
from torch.nn.functional import kl_div
from transformers import LogitsProcessor, LogitsProcessorList

from lmms_eval_vreason import VReason, generate
from lmms_eval_vreason.calibrate.replay import Prompts, replay

OFF = VReason(policy="off")
STRONG = VReason.preset("strong", policy="minimize", min_entropy=1e-4)
SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11), prompt(seed=3, text=3)]


def inputs_of(samples):
    return [batch([sample]) for sample in samples]


def run(model, method, base, *, answers, samples=SAMPLES, **settings):
    prompts = Prompts.of(model, inputs_of(samples))
    return replay(model, method, prompts.arguments(model), answers, base, do_sample=False, **settings)


class Seen(LogitsProcessor):
    """Notes what it is shown."""

    def __init__(self):
        self.log_p = []

    def __call__(self, input_ids, scores):
        self.log_p.append(scores.log_softmax(dim=-1))
        return scores


@pytest.fixture(scope="module")
def answers(sdpa):
    """The model's own, of up to 12 tokens."""
    result = generate(sdpa, OFF, **batch(SAMPLES), max_new_tokens=12, do_sample=False)
    start = batch(SAMPLES)["input_ids"].shape[1]
    return [row[start:][: len(t.entropy)].tolist() for row, t in zip(result.sequences, result.traces, strict=True)]


def test_the_base_model_differs_in_nothing_from_itself(sdpa, answers):
    base = []
    first, again = (run(sdpa, OFF, base, answers=answers) for _ in range(2))
    assert len(base) == max(map(len, answers))
    for ours in (first, again):
        assert not any(map(any, ours.changed))
        for row, trace in enumerate(ours.traces):
            assert ours.entropy[row] == pytest.approx(trace.entropy.tolist(), abs=1e-5)
            assert ours.kl[row] == [0.0] * len(answers[row])


@pytest.mark.parametrize("rate", [1.0, 5.0])
def test_numbers_are_of_the_distribution_after_the_update(sdpa, answers, rate):
    """ΔV starts from 0 at each token, so what the trace says of an update is the difference to the base model."""
    method = VReason.preset("strong", policy="minimize", min_entropy=1e-4, learning_rate=rate)
    base = []
    off, on = run(sdpa, OFF, base, answers=answers), run(sdpa, method, base, answers=answers)
    for row, trace in enumerate(on.traces):
        before, change = off.traces[row].entropy, np.nan_to_num(trace.entropy_change)
        assert trace.updates > 3
        assert on.entropy[row] == pytest.approx((before + change).tolist(), abs=1e-4)
        assert on.changed[row] == [flag == 1 for flag in trace.changed]
        assert all((kl > 1e-6) == (alpha != 0) for kl, alpha in zip(on.kl[row], trace.alpha, strict=True))
    assert sum(map(sum, on.changed)) > 0 or rate == 1.0


def test_divergence_is_from_the_base_model_to_the_setting(sdpa, answers):
    seen, base = [Seen(), Seen()], []
    for method, each in zip((OFF, STRONG), seen, strict=True):
        ours = run(sdpa, method, base, answers=answers, logits_processor=LogitsProcessorList([each]))
    for at, (plain, steered) in enumerate(zip(seen[0].log_p, seen[1].log_p, strict=True)):
        expected = kl_div(steered, plain, log_target=True, reduction="none").sum(dim=-1)
        rows = [row for row, answer in enumerate(answers) if at < len(answer)]
        assert [ours.kl[row][at] for row in rows] == pytest.approx(expected[rows].tolist(), abs=1e-6)


def test_a_token_that_is_ruled_out_takes_no_part(sdpa):
    answers, base = [[3, 14, 15, 9]], []
    alone = {"samples": SAMPLES[:1], "answers": answers, "suppress_tokens": list(range(20, VOCABULARY))}
    run(sdpa, OFF, base, **alone)
    ours = run(sdpa, STRONG, base, **alone)
    assert np.isfinite(ours.entropy).all()
    assert np.isfinite(ours.kl).all()
    assert max(ours.entropy[0]) <= np.log(20) + 1e-5


def test_a_batch_gives_what_its_samples_give_alone(sdpa, answers):
    base = []
    run(sdpa, OFF, base, answers=answers)
    together = run(sdpa, STRONG, base, answers=answers)
    for row, answer in enumerate(answers):
        own = []
        one = {"samples": SAMPLES[row : row + 1], "answers": [answer]}
        run(sdpa, OFF, own, **one)
        alone = run(sdpa, STRONG, own, **one)
        assert together.entropy[row] == pytest.approx(alone.entropy[0], abs=1e-4)
        assert together.kl[row] == pytest.approx(alone.kl[0], abs=1e-4)


def test_given_tokens_are_chosen_whatever_the_model_would_say(sdpa):
    short = [[3, 14, END], [2, 7, 18, 28]]
    ours = run(sdpa, STRONG, [], samples=SAMPLES[:2], answers=short)
    assert [len(row) for row in ours.entropy] == [3, 4]


def test_answers_that_the_stopping_criteria_would_cut_are_refused(sdpa):
    with pytest.raises(RuntimeError, match="did not choose"):
        run(sdpa, OFF, [], samples=SAMPLES[:1], answers=[[3, END, 14]])
