"""Without a policy, or at learning rate 0, the loop is plain ``model.generate``, token for token.

Plain ``generate`` has transformers' positions, so the loop is asked for them; tests/families has the trained ones.
"""

import pytest
import torch
from random_model import END, PAD, batch, forced_tokens, prompt, random_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from lmms_eval_vreason import VReason

STOCK = {"positions": "transformers"}
BASES = {"off": VReason(policy="off"), "zero": VReason(learning_rate=0)}
SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11), prompt(seed=3, text=3)]
SETTINGS = {
    "greedy": {"repetition_penalty": 1.05},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.05},
    "min_p": {"do_sample": True, "min_p": 0.1, "top_k": 0},
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return random_model(attention=request.param)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def older(request):
    return random_model(attention=request.param, family="qwen2_vl")


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_equal_plain_generate(model, base, settings, rows):
    inputs = batch(SAMPLES[:rows])
    torch.manual_seed(5)
    plain = model.generate(**inputs, max_new_tokens=24, **settings)
    torch.manual_seed(5)
    result = base.generate(model, **STOCK, **inputs, max_new_tokens=24, **settings)
    assert torch.equal(result.sequences, plain)
    assert plain.shape[1] > inputs["input_ids"].shape[1] + 8


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_qwen2_vl(older, base, cache):
    inputs, settings = batch(SAMPLES, family="qwen2_vl"), {"max_new_tokens": 24, "cache_implementation": cache}
    plain = older.generate(**inputs, **settings, repetition_penalty=1.05)
    assert torch.equal(base.generate(older, **inputs, **settings, repetition_penalty=1.05).sequences, plain)


def test_checkpoint_settings_apply(model):
    """What the checkpoint's generation config says is used, as by plain ``generate``, and is left as it was."""
    inputs = batch(SAMPLES)
    model.generation_config.repetition_penalty = 1.8
    try:
        plain = model.generate(**inputs, max_new_tokens=20)
        result = BASES["off"].generate(model, **STOCK, **inputs, max_new_tokens=20)
        assert model.generation_config.repetition_penalty == 1.8
    finally:
        model.generation_config.repetition_penalty = 1.0
    assert torch.equal(result.sequences, plain)
    assert not torch.equal(plain, model.generate(**inputs, max_new_tokens=20))


def test_static_cache(model):
    inputs = batch(SAMPLES)
    plain = model.generate(**inputs, max_new_tokens=16, cache_implementation="static")
    for base in BASES.values():
        result = base.generate(model, **STOCK, **inputs, max_new_tokens=16, cache_implementation="static")
        assert torch.equal(result.sequences, plain)


class Notes(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], 0

    def put(self, value):
        self.tokens.append(value.clone())

    def end(self):
        self.ended += 1


def test_streamer_hears_the_same(model):
    inputs, plain, ours = batch(SAMPLES[:1]), Notes(), Notes()
    model.generate(**inputs, max_new_tokens=9, streamer=plain)
    BASES["zero"].generate(model, **STOCK, **inputs, max_new_tokens=9, streamer=ours)
    assert len(plain.tokens) == len(ours.tokens)
    assert all(torch.equal(a.flatten(), b.flatten()) for a, b in zip(plain.tokens, ours.tokens, strict=True))
    assert plain.ended == ours.ended == 1


def test_end_tokens_pad_the_finished(model):
    inputs = batch(SAMPLES)
    free = model.generate(**inputs, max_new_tokens=20, eos_token_id=None)
    new = free[:, inputs["input_ids"].shape[1] :]
    ends = [int(new[0, 4]), END]
    plain = model.generate(**inputs, max_new_tokens=20, eos_token_id=ends)
    result = BASES["zero"].generate(model, **STOCK, **inputs, max_new_tokens=20, eos_token_id=ends)
    assert torch.equal(result.sequences, plain)
    lengths = [len(trace.entropy) for trace in result.traces]
    assert lengths[0] <= 5 < max(lengths)
    for row, length in zip(plain[:, inputs["input_ids"].shape[1] :], lengths, strict=True):
        assert (row[length:] == model.generation_config.pad_token_id).all()


def test_no_end_token(model):
    inputs = batch(SAMPLES)
    plain = model.generate(**inputs, max_new_tokens=20, eos_token_id=None)
    result = BASES["off"].generate(model, **STOCK, **inputs, max_new_tokens=20, eos_token_id=None)
    assert torch.equal(result.sequences, plain)
    assert plain.shape[1] == inputs["input_ids"].shape[1] + 20


@pytest.fixture(scope="module")
def tokenizer():
    """One printable character a token."""
    raw = Tokenizer(models.BPE({chr(33 + i): i for i in range(94)} | {"Ġ": 94, "Ċ": 95}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.mark.parametrize("through_config", [False, True])
def test_stop_strings(model, tokenizer, through_config):
    inputs = batch(SAMPLES[:1])
    free = model.generate(**inputs, max_new_tokens=20, eos_token_id=None)
    stop = tokenizer.decode(free[0, inputs["input_ids"].shape[1] + 2 :][:2])
    config = GenerationConfig(pad_token_id=PAD, max_new_tokens=20)
    settings = {"generation_config": config}
    if through_config:
        config.stop_strings = [stop]
    else:
        settings["stop_strings"] = [stop]
    plain = model.generate(**inputs, **settings, tokenizer=tokenizer)
    result = BASES["zero"].generate(model, **STOCK, **inputs, **settings, tokenizer=tokenizer)
    assert torch.equal(result.sequences, plain)
    assert plain.shape[1] <= inputs["input_ids"].shape[1] + 4
    assert config.stop_strings == ([stop] if through_config else None)


def test_own_processors_and_criteria(model):
    inputs = batch(SAMPLES[:2])

    class Ban:
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, forced_tokens(1, 30)[0], -torch.inf)

    def extra():
        return {
            "logits_processor": LogitsProcessorList([Ban()]),
            "stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(max_time=60.0)]),
        }

    plain = model.generate(**inputs, max_new_tokens=12, **extra())
    result = BASES["zero"].generate(model, **STOCK, **inputs, max_new_tokens=12, **extra())
    assert torch.equal(result.sequences, plain)
    assert not torch.equal(plain, model.generate(**inputs, max_new_tokens=12))


def test_generators_make_a_sample_independent_of_its_neighbours(model):
    """With one generator a sample, what is sampled does not depend on the batch."""
    settings = {"max_new_tokens": 15, "do_sample": True, "temperature": 1.2, "top_k": 0}
    seeds = [11, 12, 13]

    def generators(chosen):
        return [torch.Generator().manual_seed(seed) for seed in chosen]

    together = BASES["zero"].generate(model, **STOCK, **batch(SAMPLES), generators=generators(seeds), **settings)
    new = together.sequences[:, batch(SAMPLES)["input_ids"].shape[1] :]
    for i, seed in enumerate(seeds):
        inputs = batch([SAMPLES[i]])
        alone = BASES["zero"].generate(model, **STOCK, **inputs, generators=generators([seed]), **settings).sequences
        alone = alone[0, inputs["input_ids"].shape[1] :]
        assert torch.equal(new[i, : len(alone)], alone)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        BASES["zero"].generate(model, **STOCK, **batch(SAMPLES), generators=generators(seeds[:2]), **settings)


@pytest.mark.parametrize("videos", [(), ((2, 4, 4),)])
def test_prompt_without_video_runs_as_the_base_model(model, videos):
    """Image and text prompts are not steered, and their trace says why; a video beside them still is."""
    samples = [prompt(videos=(), images=((1, 4, 4),), seed=4), prompt(videos=videos, text=9, seed=5)]
    inputs = batch(samples)
    plain = model.generate(**inputs, max_new_tokens=10, eos_token_id=None)
    result = VReason(policy="minimize", learning_rate=0.3).generate(
        model, **STOCK, **inputs, max_new_tokens=10, eos_token_id=None
    )
    first, second = result.traces
    assert torch.equal(result.sequences[0], plain[0])
    assert (first.updates, first.video_tokens, first.note) == (0, 0, "the prompt has no video tokens")
    assert len(first.entropy) == 10
    assert (first.entropy > 0).all()
    assert (second.updates > 0) == bool(videos) == (second.note == "")


def test_without_padding_or_mask(model):
    inputs = batch(SAMPLES[:1])
    del inputs["attention_mask"]
    plain = model.generate(**inputs, max_new_tokens=10)
    assert torch.equal(BASES["zero"].generate(model, **STOCK, **inputs, max_new_tokens=10).sequences, plain)
