"""Trained positions: the rule's own examples, and what the text model is really called with, token by token."""

import math
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_model import IMAGE, PAD, PATCH, VIDEO, VISION_END, VISION_START, placed, random_model
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen3Config

from lmms_eval_vreason import VReason
from lmms_eval_vreason.adapter.options import parse_options
from lmms_eval_vreason.engines.hf.prefix import continued, prefill
from lmms_eval_vreason.families.positions import CHOICES, trained_positions

# docs/positions.md has this table. A prompt is ("text", tokens), ("image", merged grid) and ("video", merged grid,
# seconds a grid); then tokens a second, first and last time of the video and of the text after it, first generated.
TABLE = [
    ([("text", 15), ("video", (16, 10, 18), 7.5), ("text", 40)], 4, (15, 465), (466, 505), 506),
    ([("text", 5), ("video", (4, 3, 3), 0.5), ("text", 7)], 2, (5, 8), (9, 15), 16),
    ([("text", 3), ("video", (2, 8, 8), 1.0), ("text", 2)], 2, (3, 5), (11, 12), 13),
    (
        [("text", 2), ("image", (1, 6, 4)), ("text", 1), ("video", (8, 2, 2), 1.32), ("text", 3)],
        2,
        (9, 27),
        (28, 30),
        31,
    ),
]
OFF = VReason(policy="off")


def naive_walk(parts, tokens_per_second):
    """The rule, word for word, token by token: three lists, and where the next token would stand. None: Qwen2-VL."""
    placed_tokens, p = [], 0
    for kind, what, *seconds in parts:
        if kind == "text":
            placed_tokens += [(p + n, p + n, p + n) for n in range(what)]
        else:
            for i in range(what[0]):
                time = 0 if kind == "image" else i
                if kind == "video" and tokens_per_second is not None:
                    time = math.floor(i * seconds[0] * tokens_per_second)
                placed_tokens += [(p + time, p + r, p + c) for r in range(what[1]) for c in range(what[2])]
        p = max(map(max, placed_tokens), default=-1) + 1
    return [list(axis) for axis in zip(*placed_tokens, strict=True)], p


def rows_of(prompts):
    """The processor's outputs for prompts of parts, padded on the left; grids are merged 2 x 2."""
    generator, rows, grids, seconds = torch.Generator().manual_seed(0), [], {IMAGE: [], VIDEO: []}, []
    for parts in prompts:
        ids, types = [], []
        for kind, what, *rest in parts:
            if kind == "text":
                ids += torch.randint(0, 60, (what,), generator=generator).tolist()
                types += [0] * what
                continue
            token = IMAGE if kind == "image" else VIDEO
            ids += [token] * math.prod(what)
            types += [1 if kind == "image" else 2] * math.prod(what)
            grids[token].append((what[0], 2 * what[1], 2 * what[2]))
            seconds += rest
        rows.append((ids, types))
    width = max(len(ids) for ids, _ in rows)
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(ids)) + ids for ids, _ in rows]),
        "mm_token_type_ids": torch.tensor([[0] * (width - len(ids)) + types for ids, types in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows]),
    }
    for token, grid, pixels in (
        (IMAGE, "image_grid_thw", "pixel_values"),
        (VIDEO, "video_grid_thw", "pixel_values_videos"),
    ):
        if grids[token]:
            inputs[grid] = torch.tensor(grids[token])
            inputs[pixels] = torch.randn(sum(map(math.prod, grids[token])), PATCH, generator=generator)
    return {**inputs, "second_per_grid_ts": torch.tensor(seconds)} if seconds else inputs


def calls_of(model, generate):
    """The position ids of each call of the text model, (4, batch, tokens), and what ``generate`` returns."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs["position_ids"].clone())

    hook = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        result = generate()
    finally:
        hook.remove()
    return seen, result


def check_calls(calls, prompts, tokens_per_second):
    """Prefill and decoded tokens stand where the naive walk puts them; padding is not looked at."""
    for row, parts in enumerate(prompts):
        axes, following = naive_walk(parts, tokens_per_second)
        count = len(axes[0])
        assert calls[0][1:, row, -count:].tolist() == axes
        assert calls[0][0, row, -count:].tolist() == list(range(count))
        for k, call in enumerate(calls[1:]):
            assert call[:, row].tolist() == [[count + k], *[[following + k]] * 3]


@pytest.fixture(scope="module")
def model():
    return random_model(layers=1)


def with_rate(model, tokens_per_second):
    model.config.vision_config.tokens_per_second = tokens_per_second
    return model


@pytest.mark.parametrize(("parts", "rate", "times", "text", "following"), TABLE)
def test_table(model, parts, rate, times, text, following):
    calls, _ = calls_of(with_rate(model, rate), partial(OFF.generate, model, **rows_of([parts]), max_new_tokens=3))
    video = (rows_of([parts])["input_ids"][0] == VIDEO).nonzero().flatten()
    assert tuple(calls[0][1, 0, video[[0, -1]]].tolist()) == times
    assert calls[0][1:, 0, int(video[-1]) + 1 :].tolist() == [list(range(text[0], text[1] + 1))] * 3
    assert [call[1:, 0, 0].tolist() for call in calls[1:]] == [[following] * 3, [following + 1] * 3]
    assert naive_walk(parts, rate)[1] == following


# Eighths are exact in binary, so that the walk's own arithmetic is, whatever its order.
SIDE, SECONDS = st.integers(1, 3), st.integers(0, 40).map(lambda n: n / 8)
TEXT = st.tuples(st.just("text"), st.integers(1, 6))
IMAGES = st.tuples(st.just("image"), st.tuples(st.just(1), SIDE, SIDE))
VIDEOS = st.tuples(st.just("video"), st.tuples(st.integers(1, 4), SIDE, SIDE), SECONDS)
# Any order, several of each; at the start, at the end, and one right after another.
PROMPT = st.lists(st.one_of(TEXT, IMAGES, VIDEOS), min_size=1, max_size=6)
METHODS = st.sampled_from([OFF, VReason(policy="off", prune_ratio=0.5), VReason(update_every=1)])
SEARCH = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)


BATCHES, RATES = st.lists(PROMPT, min_size=1, max_size=4), st.sampled_from([1, 2, 4, 25])


@SEARCH
@given(prompts=BATCHES, rate=RATES)
def test_random_prompts(model, prompts, rate):
    positions = trained_positions(with_rate(model, rate).config, **rows_of(prompts))
    check_calls([positions], prompts, rate)


@settings(SEARCH, max_examples=60)
@given(prompts=BATCHES, rate=RATES, method=METHODS)
def test_random_prompts_through_generate(model, prompts, rate, method):
    """A batch is its prompts alone: each row is held against its own walk."""
    inputs = rows_of(prompts)
    generate = partial(method.generate, with_rate(model, rate), **inputs, max_new_tokens=3, eos_token_id=None)
    calls, _ = calls_of(model, generate)
    assert len(calls) == 3
    check_calls(calls, prompts, rate)


@pytest.mark.parametrize("seconds", [1.32, 0.528, 0.76, 1 / 3, 0.7])
def test_times_are_rounded_down_in_float32(model, seconds):
    """As training did: 0.7 s has its tenth grid at 7 s, which float64 would have just short of it."""
    parts = [("video", (12, 1, 1), seconds), ("text", 1)]
    positions = trained_positions(with_rate(model, 2).config, **rows_of([parts]))
    step = torch.tensor(seconds, dtype=torch.float32)
    expected = [int(float(torch.tensor(float(i), dtype=torch.float32) * step) * 2) for i in range(12)]
    assert positions[1, 0, :12].tolist() == expected
    assert seconds != 0.7 or expected[10] == 14


def test_a_batch_is_its_prompts_alone(model):
    prompts = [parts for parts, *_ in TABLE]
    together = trained_positions(with_rate(model, 2).config, **rows_of(prompts))
    for row, parts in enumerate(prompts):
        alone = trained_positions(model.config, **rows_of([parts]))[:, 0]
        assert torch.equal(together[:, row, -alone.shape[1] :], alone)
        assert not together[:, row, : -alone.shape[1]].any()


@pytest.mark.parametrize("method", [OFF, VReason(learning_rate=0.1, prune_ratio=0.5)], ids=["off", "lite"])
def test_static_cache(model, method):
    prompts = [TABLE[3][0], TABLE[1][0]]
    inputs = rows_of(prompts)
    generate = partial(method.generate, with_rate(model, 2), **inputs, max_new_tokens=4, eos_token_id=None)
    calls, dynamic = calls_of(model, generate)
    static_calls, static = calls_of(model, partial(generate, cache_implementation="static"))
    assert torch.equal(dynamic.sequences, static.sequences)
    check_calls(calls, prompts, 2)
    check_calls(static_calls, prompts, 2)


def test_shared_prefix_is_not_shared(model):
    """Two questions on one start: tokens and positions are those of each prompt alone."""
    start = [("text", 3), ("image", (1, 2, 3)), ("video", (4, 2, 2), 1.32), ("text", 1)]
    questions = [[*start[:-1], ("text", 1 + n)] for n in (4, 9)]
    alone = [rows_of([parts]) for parts in questions]
    length = {"max_new_tokens": 5, "eos_token_id": None}
    count = len(rows_of([start])["input_ids"][0])
    # The start ends with one text token, as a template's end of media.
    first = {**alone[0], **{k: alone[0][k][:, :count] for k in ("input_ids", "mm_token_type_ids", "attention_mask")}}
    alone[1]["input_ids"][:, :count] = first["input_ids"]
    alone[1] |= {k: alone[0][k] for k in ("pixel_values", "pixel_values_videos")}
    prefix = prefill(with_rate(model, 2), first)
    suffixes = [inputs["input_ids"][0, count:] for inputs in alone]
    calls, shared = calls_of(model, partial(OFF.generate, model, **continued(model, [prefix] * 2, suffixes), **length))
    for row, (parts, inputs) in enumerate(zip(questions, alone, strict=True)):
        axes, following = naive_walk(parts, 2)
        rest = len(axes[0]) - count
        assert prefix.position_ids.tolist() == [axis[:count] for axis in axes]
        assert calls[0][1:, row, -rest:].tolist() == [axis[count:] for axis in axes]
        assert [call[:, row, 0].tolist() for call in calls[1:]] == [
            [len(axes[0]) + k, *[following + k] * 3] for k in range(4)
        ]
        single = OFF.generate(model, **inputs, **length)
        assert torch.equal(shared.sequences[row, -5:], single.sequences[0, -5:])


def test_transformers_positions_are_the_plain_calls(model):
    inputs = rows_of([[*TABLE[0][0][:1], ("video", (3, 2, 2), 7.5), ("text", 4)], TABLE[1][0]])
    length = {"max_new_tokens": 3, "eos_token_id": None}
    plain, sequences = calls_of(with_rate(model, 4), partial(model.generate, **inputs, **length))
    stock, result = calls_of(model, partial(OFF.generate, model, **inputs, **length, positions="transformers"))
    trained, _ = calls_of(model, partial(OFF.generate, model, **inputs, **length))
    assert torch.equal(result.sequences, sequences)
    assert all(torch.equal(one, other) for one, other in zip(plain, stock, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(plain, trained, strict=True))


def test_a_shared_prefix_under_transformers_positions(model):
    inputs = rows_of([[("text", 3), ("video", (4, 2, 2), 7.5), ("text", 2)]])
    expected, _ = with_rate(model, 2).model.get_rope_index(**{k: v for k, v in inputs.items() if k != "pixel_values"})
    assert torch.equal(prefill(model, inputs, "transformers").position_ids, expected[:, 0])
    assert not torch.equal(prefill(model, inputs).position_ids, expected[:, 0])


def test_positions_of_one_s_own_win(model):
    inputs = rows_of([TABLE[2][0]])
    own = placed(with_rate(model, 2), inputs)["position_ids"] + 7
    calls, _ = calls_of(model, partial(OFF.generate, model, **inputs, position_ids=own, max_new_tokens=2))
    assert torch.equal(calls[0], own)
    assert torch.equal(calls[1], own[..., -1:] + 1)


def test_rope_deltas_stay_as_they_were(model):
    model.model.rope_deltas = torch.full((1, 1), 1000)
    OFF.generate(with_rate(model, 2), **rows_of([TABLE[1][0]]), max_new_tokens=3)
    assert model.model.rope_deltas.tolist() == [[1000]]
    model.model.rope_deltas = None


QWEN2_VL = {
    "text_config": {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    },
    "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 2},
    "video_token_id": VIDEO,
    "image_token_id": IMAGE,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


@SEARCH
@given(prompts=st.lists(PROMPT, min_size=1, max_size=3))
def test_qwen2_vl_counts_grids(prompts):
    positions = trained_positions(Qwen2VLConfig(**QWEN2_VL), **rows_of(prompts))
    check_calls([positions], prompts, None)


def test_qwen2_vl_through_plain_generate():
    """The method does not steer Qwen2-VL; its positions go into plain ``generate``."""
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**QWEN2_VL)).eval()
    prompts = [TABLE[3][0], [("text", 2), ("video", (5, 1, 2), 7.5), ("text", 3)]]
    length = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": PAD}
    inputs = placed(model, rows_of(prompts))
    del inputs["second_per_grid_ts"]
    check_calls(calls_of(model, partial(model.generate, **inputs, **length))[0], prompts, None)


def test_wrong_inputs_are_named(model):
    inputs = rows_of([TABLE[3][0]])
    generate = partial(OFF.generate, with_rate(model, 2), max_new_tokens=1)
    with pytest.raises(ValueError, match="positions='vllm' is not one of trained, transformers"):
        generate(**inputs, positions="vllm")
    with pytest.raises(ValueError, match="more media than video_grid_thw has grids"):
        generate(**{**inputs, "video_grid_thw": None, "second_per_grid_ts": None})
    with pytest.raises(ValueError, match="more media than image_grid_thw has grids"):
        generate(**{**inputs, "image_grid_thw": None})
    with pytest.raises(ValueError, match=r"^image_grid_thw or video_grid_thw has more grids than"):
        generate(**{**inputs, "image_grid_thw": torch.tensor([[1, 12, 8], [1, 2, 2]])})
    with pytest.raises(ValueError, match="from token 2 of its prompt on: pass the prompt and the grids"):
        generate(**{**inputs, "image_grid_thw": torch.tensor([[1, 12, 16]])})
    with pytest.raises(ValueError, match="second_per_grid_ts has 2 values for 1 videos"):
        generate(**{**inputs, "second_per_grid_ts": torch.ones(2)})
    with pytest.raises(ValueError, match="computed from input_ids"):
        generate(inputs=inputs["input_ids"])
    with pytest.raises(ValueError, match="pass attention_mask"):
        generate(**{**rows_of([TABLE[3][0], TABLE[1][0]]), "attention_mask": None})
    with pytest.raises(ValueError, match="attention_mask has the shape"):
        trained_positions(model.config, inputs["input_ids"], inputs["attention_mask"][:, 1:])
    with pytest.raises(TypeError, match="not for qwen3: pass positions='transformers'"):
        trained_positions(Qwen3Config(), inputs["input_ids"])


def test_the_model_argument_has_the_same_choices():
    assert parse_options({}).model.positions == CHOICES[0] == "trained"
    assert [parse_options({"positions": choice}).model.positions for choice in CHOICES] == list(CHOICES)
    with pytest.raises(ValueError, match="positions='vllm' is not one of trained, transformers"):
        parse_options({"positions": "vllm"})
