"""Lite: the lowest-scored video tokens leave every layer's cache, and nothing else changes."""

import pytest
import torch
from random_model import VIDEO, Forced, batch, forced_tokens, packed, placed, prompt, steer
from transformers import DynamicCache, LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.generation import frozen
from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.method.pruning import SCORES

SAMPLES = [
    prompt(seed=1),
    prompt(seed=2, videos=((2, 4, 6),), text=11),
    prompt(seed=3, videos=((1, 4, 4), (2, 2, 4)), images=((1, 4, 4),), text=3),
]
NORMS = {
    "value_norm": lambda cache: cache.layers[-1].values.square().sum((1, 3)).sqrt(),
    "key_norm": lambda cache: cache.layers[-1].keys.square().sum((1, 3)).sqrt(),
    "mean_value_norm": lambda cache: sum(layer.values.square().sum((1, 3)).sqrt() for layer in cache.layers) / 3,
}


def dropped_tokens(model, inputs, score, ratio):
    """(batch, tokens) bool by the definition, from a plain prefill: a sample's ⌊ratio · n⌋ lowest video tokens."""
    cache = DynamicCache(config=model.config.get_text_config())
    model.generate(**placed(model, inputs), max_new_tokens=1, **{CACHE: cache})
    scores = NORMS[score](cache)
    dropped = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, ids in enumerate(inputs["input_ids"]):
        video = (ids == VIDEO).nonzero().flatten().tolist()
        lowest = sorted(video, key=lambda column: scores[row, column].item())[: int(ratio * len(video))]
        dropped[row, lowest] = True
    return dropped


def positions_of(model, generate):
    """The position ids that each forward of the text model is given, and what ``generate`` returns."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs["position_ids"].clone())

    hook = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return seen, generate()
    finally:
        hook.remove()


@torch.no_grad()
def masked_logits(model, inputs, dropped, tokens, positions):
    """Logits of the decoding steps over the full cache, with the dropped tokens masked out of every layer."""
    cache = DynamicCache(config=model.config.get_text_config())
    model.generate(**placed(model, inputs), max_new_tokens=1, **{CACHE: cache})
    mask, logits = inputs["attention_mask"].masked_fill(dropped, 0), []
    for step in range(tokens.shape[1] - 1):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        out = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(tokens[:, step : step + 1]),
            attention_mask=mask,
            position_ids=positions[step + 1][-3:],
            **{CACHE: cache},
            use_cache=True,
        )
        logits.append(model.lm_head(out.last_hidden_state)[:, -1])
    return logits


@pytest.mark.parametrize("score", NORMS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_removed_equals_masked(model, score, cache, ratio):
    """The same logits as with the dropped tokens masked in all layers, and the same positions as without pruning."""
    inputs, tokens = batch(SAMPLES), forced_tokens(3, 6)
    settings = {"max_new_tokens": 6, "cache_implementation": cache}
    plain, pruned = Forced(tokens), Forced(tokens)
    # Frozen, as ours is: older torch rounds otherwise where weights require gradients.
    with frozen(model):
        positions, _ = positions_of(
            model,
            lambda: model.generate(**placed(model, inputs), **settings, logits_processor=LogitsProcessorList([plain])),
        )
    method = VReason(policy="off", prune_ratio=ratio, prune_score=score)
    ours, _ = positions_of(
        model, lambda: method.generate(model, **inputs, **settings, logits_processor=LogitsProcessorList([pruned]))
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, positions, strict=True))
    dropped = dropped_tokens(model, inputs, score, ratio)
    references = masked_logits(model, inputs, dropped, tokens, positions)
    assert torch.equal(pruned.logits[0], plain.logits[0])
    for ours, reference, base in zip(pruned.logits[1:], references, plain.logits[1:], strict=True):
        assert (ours - reference).abs().max() <= 2e-5
        assert (ours - base).abs().max() > 1e-3


@pytest.mark.parametrize("cache_type", ["dynamic", "static"])
def test_mask_length_and_shift_agree(sdpa, cache_type):
    inputs, tokens = batch(SAMPLES), forced_tokens(3, 6)
    prompt_length = inputs["input_ids"].shape[1]
    masks = []

    def note(module, args, kwargs):
        masks.append((kwargs["attention_mask"], int(kwargs[CACHE].get_seq_length())))

    hook = sdpa.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    settings = {"max_new_tokens": 6, "logits_processor": LogitsProcessorList([Forced(tokens)])}
    try:
        _, loop = steer(sdpa, VReason(prune_ratio=0.5), **inputs, **settings, cache_implementation=cache_type)
    finally:
        hook.remove()
    video = (inputs["input_ids"] == VIDEO).sum(1)
    drop = video // 2
    assert [trace.video_tokens for trace in loop.traces] == (video - drop).tolist()
    kept = (inputs["attention_mask"].sum(1) - drop).max().item()
    shift, layer = loop.decoding.steering.shift, loop.decoding.cache.layers[-1]
    assert shift.video.flatten(1).sum(1).tolist() == (video - drop).tolist()
    assert layer.get_seq_length() == kept + 5
    for step, (mask, length) in enumerate(masks[1:]):
        assert length == kept + step
        if cache_type == "dynamic":
            assert mask.shape == (3, kept + step + 1)
            assert (mask.sum(1) == inputs["attention_mask"].sum(1) - drop + step + 1).all()
        else:
            seen = mask["full_attention"] if isinstance(mask, dict) else mask
            assert (seen.flatten(1).sum(1) == inputs["attention_mask"].sum(1) - drop + step + 1).all()
    # The V that is moved is what a plain prefill had at the tokens that stay, in their order.
    dropped = dropped_tokens(sdpa, inputs, "value_norm", 0.5)
    plain = DynamicCache(config=sdpa.config.get_text_config())
    sdpa.generate(**placed(sdpa, inputs), max_new_tokens=1, **{CACHE: plain})
    stays = (inputs["input_ids"] == VIDEO) & ~dropped
    values = plain.layers[-1].values.transpose(1, 2)[stays]
    # Attention over a static cache, which is longer, rounds otherwise in the layers before.
    assert torch.allclose(packed(shift, shift.original), values, rtol=0, atol=0 if cache_type == "dynamic" else 1e-5)
    assert prompt_length > kept


def cache_bytes(cache):
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_cache_bytes_fall_by_the_arithmetic(sdpa, ratio):
    """Dropped tokens × layers × (keys + values) × kv_heads × head_dim × 4 bytes, in every sample of the batch."""
    inputs = batch([prompt(seed=seed, videos=((2, 4, 8),)) for seed in range(3)])
    sizes = []
    for chosen in (0.0, ratio):
        cache = DynamicCache(config=sdpa.config.get_text_config())
        VReason(prune_ratio=chosen).generate(sdpa, **inputs, max_new_tokens=4, eos_token_id=None, **{CACHE: cache})
        sizes.append(cache_bytes(cache))
        assert all(tensor.is_contiguous() for layer in cache.layers for tensor in (layer.keys, layer.values))
        stored = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
        assert stored == sizes[-1]
    assert sizes[0] - sizes[1] == 3 * int(ratio * 16) * 3 * 2 * 2 * 8 * 4


def test_scores_table(sdpa):
    inputs = batch(SAMPLES)
    cache = DynamicCache(config=sdpa.config.get_text_config())
    sdpa.generate(**placed(sdpa, inputs), max_new_tokens=1, **{CACHE: cache})
    video = inputs["input_ids"] == VIDEO
    states = [(layer.keys, layer.values) for layer in cache.layers]
    for name, reference in NORMS.items():
        assert torch.allclose(SCORES[name](states, video, 0), reference(cache), rtol=1e-5)
    assert set(SCORES) == {*NORMS, "random"}


@pytest.mark.parametrize("samples", [SAMPLES[:1], [prompt(videos=(), text=9, seed=8)]], ids=["small", "none"])
def test_nothing_to_drop_is_the_base_model(sdpa, samples):
    """A ratio that drops no whole token, or a prompt without video: plain ``generate``'s tokens."""
    inputs = batch(samples)
    plain = sdpa.generate(**placed(sdpa, inputs), max_new_tokens=10)
    result = VReason(policy="off", prune_ratio=0.05).generate(sdpa, **inputs, max_new_tokens=10)
    assert torch.equal(result.sequences, plain)
