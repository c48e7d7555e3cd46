"""Prompts that go on from a shared, prefilled start: the same tokens, one prefill a video, little held."""

from functools import partial

import numpy as np
import pytest
import torch
from instances import instances
from offline import write_video
from random_model import END, VISION_END, batch, prompt, random_model, steer
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.cache import copy_cache, static_cache
from lmms_eval_vreason.engines.hf.prefix import continued, prefill, prefix_bytes
from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.journal.files import latest_samples, read_records
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.run import shared_prefixes as prefix
from lmms_eval_vreason.run.samples import GenerationSettings, Sample

METHODS = {
    "off": VReason(policy="off"),
    "default": VReason(learning_rate=0.1),
    "lite": VReason(learning_rate=0.1, prune_ratio=0.5),
    "lite, random": VReason(learning_rate=0.1, prune_ratio=0.3, prune_score="random", policy="random"),
    "topk, steps": VReason(learning_rate=0.1, head_topk=24, steps_per_update=2),
}


def question(start: dict, words: int, seed: int) -> dict:
    """The prompt ``start`` with other words after its media."""
    cut = len(start["ids"]) - start["ids"][::-1].index(VISION_END)
    text = torch.randint(0, 60, (words,), generator=torch.Generator().manual_seed(seed)).tolist()
    return {**start, "ids": start["ids"][:cut] + text, "types": start["types"][:cut] + [0] * words}


STARTS = [prompt(seed=1), prompt(seed=2, videos=((3, 4, 6),), images=((1, 4, 4),))]
QUESTIONS = [(0, question(STARTS[0], 6, 1)), (0, question(STARTS[0], 11, 2))]
QUESTIONS += [(1, question(STARTS[1], 3, 3)), (None, prompt(videos=(), text=7, seed=4))]
SETTINGS = {"max_new_tokens": 14, "eos_token_id": None}


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def starts(model):
    return [prefill(model, batch([question(start, 0, 0)])) for start in STARTS]


def going_on(model, starts, rows=range(4)):
    chosen = [QUESTIONS[row] for row in rows]
    own = [None if start is None else starts[start] for start, _ in chosen]
    lengths = [0 if start is None else start.tokens for start in own]
    return continued(model, own, [torch.tensor(p["ids"][n:]) for n, (_, p) in zip(lengths, chosen, strict=True)])


CASES = [(name, "dynamic") for name in METHODS] + [("default", "static"), ("lite", "static")]


@pytest.mark.parametrize(("method", "cache"), CASES)
def test_rows_that_go_on_are_prompts_alone(model, starts, method, cache):
    method = METHODS[method]
    for rows in ([1], [0, 1], [0, 1, 2, 3]):
        inputs = going_on(model, starts, rows)
        if cache == "static":
            inputs[CACHE] = copy_cache(inputs[CACHE], static_cache(model, 200))
        together, loop = steer(model, method, **inputs, **SETTINGS)
        for place, row in enumerate(rows):
            alone, own = steer(model, method, **batch([QUESTIONS[row][1]]), **SETTINGS)
            assert torch.equal(together[place, -14:], alone[0, -14:])
            ours, theirs = loop.traces[place], own.traces[0]
            assert ours.video_tokens == theirs.video_tokens
            assert np.array_equal(ours.alpha, theirs.alpha)
            for name in ("entropy", "shift", "grad_norm"):
                assert np.allclose(getattr(ours, name), getattr(theirs, name), rtol=2e-3, atol=2e-5, equal_nan=True)


def test_a_start_is_only_read_and_positions_are_not_shared(model, starts):
    before = [tensor.clone() for start in starts for tensor in start.keys + start.values]
    model.model.rope_deltas = torch.full((1, 1), 1000)
    first, _ = steer(model, METHODS["default"], **going_on(model, starts), **SETTINGS)
    prefill(model, batch([question(STARTS[1], 0, 0)]))
    assert model.model.rope_deltas.tolist() == [[1000]]
    steer(model, METHODS["lite"], **going_on(model, starts, [0]), **SETTINGS)
    again, _ = steer(model, METHODS["default"], **going_on(model, starts), **SETTINGS)
    assert torch.equal(first, again)
    after = [tensor for start in starts for tensor in start.keys + start.values]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert prefix_bytes(model, starts[0].tokens) == sum(t.nbytes for t in starts[0].keys + starts[0].values)


def test_padding_holds_no_foreign_token(model, starts):
    """A repetition penalty sees the whole row: with a foreign padding token it would punish that as well."""
    inputs = going_on(model, starts)
    for row, (_, own) in zip(inputs["input_ids"].tolist(), QUESTIONS, strict=True):
        assert set(row) == set(own["ids"])
    penalty = {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(3.0)])}
    together, _ = steer(model, METHODS["default"], **inputs, **SETTINGS, **penalty)
    for row, (_, own) in enumerate(QUESTIONS):
        alone, _ = steer(model, METHODS["default"], **batch([own]), **SETTINGS, **penalty)
        assert torch.equal(together[row, -14:], alone[0, -14:])


def test_a_prompt_without_an_end_of_its_own_is_refused(model, starts):
    with pytest.raises(ValueError, match="at least one token must follow"):
        continued(model, starts, [torch.tensor([END]), torch.tensor([], dtype=torch.long)])


VIDEO = {"min_pixels": 784, "max_pixels": 56 * 56, "max_num_frames": 8}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "until": ["e"]}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [str(write_video(folder / f"{i}.mp4", seed=i, frames=4 + 2 * i)) for i in range(3)]


@pytest.fixture
def build(load):
    return partial(load, **VIDEO, max_thinking_tokens=6, max_answer_tokens=2, resume="off", on_error="raise")


def documents(videos):
    """Questions on three videos, on a clip, with the text before, with two media, on a picture, and on nothing."""
    from PIL import Image

    picture = ("image", Image.new("RGB", (56, 56), (200, 10, 10)))
    words = "what moves to the left in this video and what is its colour"
    docs = [{"media": [("video", videos[i % 3])], "text": words[: 9 + 5 * i]} for i in range(6)]
    docs += [{"media": [("video", videos[0])], "text": f"In order {i}?", "first": "Look at this."} for i in range(2)]
    docs += [{"media": [("video", videos[1])], "text": "", "first": f"Question {i}?"} for i in range(2)]
    docs += [{"media": [("video", videos[0]), ("video", videos[2])], "text": f"Compare {i}."} for i in range(2)]
    docs += [{"media": [("video", videos[1]), picture], "text": "Which?"}, {"media": [picture], "text": "Colour?"}]
    return [*docs, {"media": [], "text": "Two and two?"}]


def messages(doc):
    first = [{"type": "text", "text": doc["first"]}] if "first" in doc else []
    media = [{"type": kind, "url": url} for kind, url in doc["media"]]
    return [{"role": "user", "content": [*first, *media, {"type": "text", "text": doc["text"]}]}]


class Counted:
    """Runs documents and counts what the vision tower and the language model were given."""

    def __init__(self, model, docs, settings=GREEDY):
        self.videos, self.prompt_tokens = 0, 0
        core = model._model.model
        handles = [
            core.visual.register_forward_pre_hook(self._count_vision, with_kwargs=True),
            core.language_model.register_forward_pre_hook(self._count_tokens, with_kwargs=True),
        ]
        results = model.generate_until(instances(model, docs, settings, messages))
        for handle in handles:
            handle.remove()
        self.texts, self.counts = [r.text for r in results], [r.token_counts for r in results]
        by_doc = {r["doc_id"]: r for r in latest_samples(read_records(model._journal.folder, traces=True)).values()}
        self.records = [by_doc[index] for index in range(len(docs))]

    def _count_vision(self, module, args, kwargs):
        self.videos += len(kwargs["grid_thw"])

    def _count_tokens(self, module, args, kwargs):
        batch, tokens = kwargs["inputs_embeds"].shape[:2]
        self.prompt_tokens += batch * tokens if tokens > 1 else 0


RUNS = {
    "greedy": ({}, GREEDY, (1, 4)),
    "lite": ({"prune_ratio": 0.5, "learning_rate": 0.1}, GREEDY, (4,)),
    "topk, sampled": ({"head_topk": 32, "learning_rate": 0.1}, {"do_sample": True, "temperature": 1.5}, (4,)),
    "the task's own budget": ({"thinking": "off"}, GREEDY, (1,)),
}


@pytest.mark.parametrize(("arguments", "settings", "sizes"), RUNS.values(), ids=RUNS)
def test_answers_are_those_without_sharing(build, videos, arguments, settings, sizes):
    docs = documents(videos)
    plain = Counted(build(shared_prefix="off", **arguments), docs, settings)
    for size in sizes:
        shared = Counted(build(batch_size=size, **arguments), docs, settings)
        assert shared.texts == plain.texts
        assert shared.counts == plain.counts
        for ours, theirs in zip(shared.records, plain.records, strict=True):
            assert ours["trace"]["tokens"] == theirs["trace"]["tokens"]
            assert ours["trace"]["alpha"] == theirs["trace"]["alpha"]
            assert ours["trace"]["video_tokens"] == theirs["trace"]["video_tokens"]
        assert shared.videos < plain.videos


def test_the_vision_tower_and_the_prefill_run_once_a_video(build, videos):
    docs = [{"media": [("video", videos[i % 3])], "text": f"question {i}?"} for i in range(12)]
    plain, shared = Counted(build(shared_prefix="off"), docs), Counted(build(), docs)
    assert shared.texts == plain.texts
    assert (plain.videos, shared.videos) == (12, 3)
    for run in (plain, shared):
        assert sum(record["tokens"]["prefilled"] for record in run.records) == run.prompt_tokens
    assert plain.prompt_tokens == sum(count.input_tokens for count in plain.counts)
    # Of each video's four questions the first prefills the start; the others only what is their own.
    saved = [record["tokens"]["input"] - record["tokens"]["prefilled"] for record in shared.records]
    assert saved[:3] == [0, 0, 0]
    assert saved[3:] == saved[3:6] * 3
    assert all(n > record["trace"]["video_tokens"] for n, record in zip(saved[3:], shared.records[3:], strict=True))
    together = Counted(build(batch_size=4), docs)
    assert together.texts == plain.texts
    assert together.videos == 3


def test_seconds_are_split_and_a_start_is_paid_once(build, videos):
    docs = [{"media": [("video", videos[0])], "text": f"question {i}?"} for i in range(3)]
    seconds = [record["seconds"] for record in Counted(build(), docs).records]
    for parts in seconds:
        assert sum(parts[name] for name in ("vision", "prefill", "ordinary", "due")) <= parts["generate"] + 1e-5
        assert parts["prefill"] > 0
    assert seconds[0]["vision"] > 0
    assert [parts["vision"] for parts in seconds[1:]] == [0, 0]


def test_lone_questions_and_starts_over_the_bound_go_the_ordinary_way(build, videos, monkeypatch):
    monkeypatch.setattr(prefix, "prefill", lambda *_: pytest.fail("a start was prefilled by itself"))
    docs = [{"media": [("video", video)], "text": "question?"} for video in videos]
    assert Counted(build(batch_size=2), docs).videos == 3
    assert Counted(build(shared_prefix=1e-6), docs * 2).videos == 6


def test_at_most_one_start_is_held_between_batches_and_none_at_the_end(build, videos, monkeypatch):
    docs = [{"media": [("video", videos[i % 3])], "text": f"question {i}?"} for i in range(9)]
    docs += [{"media": [("video", f"{videos[0]}-missing.mp4")], "text": f"{i}"} for i in range(2)]
    held, inputs, owners = [], prefix.SharedPrefixes.inputs, set()

    def watched(self, samples, media):
        given = inputs(self, samples, media)
        owners.add(self)
        held.append(len(self._held))
        return given

    monkeypatch.setattr(prefix.SharedPrefixes, "inputs", watched)
    Counted(build(batch_size=2, on_error="skip", max_error_rate=1), docs)
    assert set(held) == {0, 1}
    (owner,) = owners
    assert not owner._held
    assert not owner._waiting


@pytest.mark.parametrize("where", ["prefill", "continued"])
def test_out_of_memory_drops_the_starts_and_a_lone_question_goes_the_ordinary_way(build, videos, monkeypatch, where):
    docs = [{"media": [("video", videos[i % 2])], "text": f"question {i}?"} for i in range(4)]
    plain = Counted(build(shared_prefix="off"), docs)
    sizes, real, owners = [], getattr(prefix, where), set()

    def scarce(*args):
        sizes.append(len(args[1]) if where == "continued" else 1)
        if len(sizes) in (1, 2):
            # The second as torch words it for the CPU.
            raise (torch.OutOfMemoryError, RuntimeError)[len(sizes) - 1]("DefaultCPUAllocator: can't allocate memory")
        return real(*args)

    drop = prefix.SharedPrefixes.drop
    monkeypatch.setattr(prefix, where, scarce)
    monkeypatch.setattr(prefix.SharedPrefixes, "drop", lambda self: owners.add(len(self._held)) or drop(self))
    model = build(batch_size=2)
    assert Counted(model, docs).texts == plain.texts
    if where == "continued":
        assert sizes[:2] == [2, 1]
        assert 1 in owners


def test_a_prompt_that_cannot_be_written_or_does_not_fit_is_its_samples_own_fault(build, videos):
    docs = [{"media": [("video", videos[0])], "text": f"question {i}?"} for i in range(2)]
    model = build(on_error="skip", max_error_rate=1)
    model._model.config.text_config.max_position_embeddings = 60
    records = Counted(model, docs).records
    assert all("lower max_num_frames or max_pixels" in record["error"]["message"] for record in records)
    broken = Sample(
        0,
        "task",
        "test",
        0,
        0,
        [{"role": "user", "content": 5}],
        (Media("video", "a.mp4"),),
        GenerationSettings((), {}),
    )
    shared = prefix.SharedPrefixes(model._model, model.setup.processor, model.device)
    shared.expect([broken, broken], 1.0)
    assert not shared._waiting
