"""Every family of the table under the same questions. docs/families.md shows what they give.

Each family is a tiny random model (tests/random_families.py); weights and prompts need no files.
"""

from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from family_videos import IMAGE, VIDEO
from random_families import (
    FAMILIES,
    TINY,
    begun,
    family_batch,
    family_prompt,
    kind_of,
    plain_inputs,
    positions_of,
    random_family,
    reference_logits,
)
from random_model import Forced, assert_same_run, packed, steer, values_scaled, with_double_norms
from torch._dynamo.utils import counters
from transformers import CompileConfig, LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf import seam
from lmms_eval_vreason.engines.hf.due_step import compiled_due_step
from lmms_eval_vreason.engines.hf.prefix import continued, prefill
from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.families import family as families
from lmms_eval_vreason.families.positions import media_grids, row_positions

# What each family cannot do, and the reason that its error gives.
NO_LITE = {
    "qwen3_5": "every token in every layer: this model has .*linear_attention",
    "qwen3_5_moe": "every token in every layer: this model has .*linear_attention",
    "gemma4": "every token in every layer: this model has .*sliding_attention",
    "exaone4_5": "every token in every layer: this model has .*sliding_attention",
}
NO_PREFIX = NO_LITE
SLIDING_BELOW = ("gemma4", "exaone4_5")
# transformers runs linear attention in float32 whatever the dtype, and another way with a cache than without.
FLOAT32_BELOW = ("qwen3_5", "qwen3_5_moe")

# Updates at every entropy, or a family's random weights would decide how many there are.
Steered = partial(VReason, min_entropy=0.0, learning_rate=0.03)
METHOD = Steered()
BATCH = [(2, 4), (3, 7), (1, 3)]  # Frames and words of a prompt.


def prompts(family, rows=3):
    return [family_prompt(family, frames=frames_of(family, row), words=BATCH[row][1], seed=row) for row in range(rows)]


def frames_of(family, row):
    return 2 if TINY[family].even else BATCH[row][0]


def inputs_of(family, rows=3, dtype=torch.float32):
    return family_batch(family, prompts(family, rows), dtype)


def new_tokens(result, inputs):
    return result[:, inputs["input_ids"].shape[1] :]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return random_family(family)


def test_the_table_is_the_one_that_is_tested():
    assert set(families.FAMILIES) == {tiny.model_type for tiny in TINY.values()}


def test_the_page_shows_what_is_tested_and_refused():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    cells = {name.strip(" `"): [cell.strip() for cell in row] for name, *row in rows if len(row) == 7}
    assert set(cells) == set(families.FAMILIES)
    for name in FAMILIES:
        _, placeholder, positions, _, lite, prefix, compiled = cells[TINY[name].model_type]
        assert ("token types" in placeholder) == (not kind_of(name).own_video_token)
        assert positions == {"trained": "ours", "multimodal": "transformers'"}.get(kind_of(name).positions, "plain")
        assert lite.startswith("refused") == (name in NO_LITE)
        assert prefix.startswith("refused") == (name in NO_PREFIX)
        assert compiled.startswith("yes")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_off_and_rate_zero_are_plain_generate(family, attention):
    model = random_family(family, attention=attention)
    settings = {"max_new_tokens": 6, "eos_token_id": None}
    sampled = {"do_sample": True, "temperature": 0.9}
    positions = "transformers" if kind_of(family).positions == "trained" else "trained"
    off, zero = VReason(policy="off"), VReason(learning_rate=0)
    for rows, more, bases in ((1, {}, [off, zero]), (3, sampled, [off, zero])):
        inputs = inputs_of(family, rows)
        torch.manual_seed(5)
        plain = model.generate(**plain_inputs(family, inputs), **settings, **more)
        for base in bases:
            torch.manual_seed(5)
            ours = base.generate(model, **inputs, **settings, **more, positions=positions)
            assert torch.equal(ours.sequences, plain)
        expected = (inputs["mm_token_type_ids"] == 2).sum(1).tolist()
        assert [trace.video_tokens for trace in ours.traces] == expected
        assert min(expected) > 0
    assert len(set(new_tokens(plain, inputs).flatten().tolist())) > 3


@pytest.mark.parametrize("rows", [1, 3])
def test_gradient_is_that_of_a_forward_without_a_cache(family, rows):
    """In float64; one SGD step of an update, from a ΔV that is not zero."""
    model = with_double_norms(random_family(family, dtype=torch.float64))
    if "moe" in family:
        model.set_experts_implementation("eager")  # The grouped products have no float64.
    inputs = inputs_of(family, rows, torch.float64)
    tokens = torch.randint(0, 56, (rows, 4), generator=torch.Generator().manual_seed(1))
    method = Steered(
        policy="minimize", optimizer="sgd", learning_rate=1.0, update_every=2, head_topk=0, keep_shift=True
    )
    states, shifts = [], []

    def note(module, args, kwargs):
        if kwargs.get(CACHE) is not None:  # A due step calls its layer again, without one.
            states.append(args[0])

    for updates in (1, 2):
        states.clear()
        handle = model.get_decoder().layers[-1].register_forward_pre_hook(note, with_kwargs=True)
        try:
            processor = LogitsProcessorList([Forced(tokens)])
            settings = {"max_new_tokens": 2 * updates, "logits_processor": processor, "positions": "transformers"}
            shifts.append(steer(model, method, **inputs, **settings)[1].decoding.steering.shift)
        finally:
            handle.remove()
    before, after = (packed(shift, shift.delta) for shift in shifts)
    turns = [packed(shift, shift.turns) for shift in shifts]
    gradient = (turns[0] - turns[1]) / packed(shifts[1], shifts[1].unit)
    delta = before.clone().requires_grad_()
    below = torch.cat(states, dim=1) if family in FLOAT32_BELOW else None
    logits = reference_logits(model, family, inputs, tokens[:, :3], delta, below)
    log_p = torch.log_softmax(logits, dim=-1)
    # Minimised entropy: α = -1 times KL(p, uniform).
    (reference,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(), delta)
    assert before.norm() > 0
    assert not torch.equal(before, after)
    assert (gradient - reference).norm() <= 1e-10 * reference.norm()


def test_a_batch_is_its_samples_one_by_one(family, model):
    method, settings = Steered(update_every=1), {"max_new_tokens": 6, "eos_token_id": None}
    inputs = inputs_of(family)
    together = method.generate(model, **inputs, **settings)
    for row, each in enumerate(prompts(family)):
        alone = method.generate(model, **family_batch(family, [each]), **settings)
        assert torch.equal(together.sequences[row, -6:], alone.sequences[0, -6:])
        ours, theirs = together.traces[row], alone.traces[0]
        assert ours.updates == theirs.updates > 0
        for name in ("entropy", "ema", "alpha", "entropy_change", "shift", "grad_norm"):
            pair = getattr(ours, name), getattr(theirs, name)
            assert np.allclose(*pair, rtol=2e-3, atol=2e-5, equal_nan=True), name


@pytest.mark.parametrize(("policy", "sign"), [("minimize", -1), ("maximize", 1)])
def test_entropy_goes_where_the_policy_sends_it(family, model, policy, sign):
    method = Steered(policy=policy, optimizer="nsgd", learning_rate=0.01, update_every=1, keep_shift=False)
    traces = method.generate(model, **inputs_of(family), max_new_tokens=5, eos_token_id=None).traces
    changes = np.concatenate([trace.entropy_change[1:] for trace in traces])
    assert len(changes) == 12
    assert (sign * changes > 0).all()


def test_one_rate_turns_every_scale_of_values_alike(family):
    if hasattr(random_family(family).get_decoder().layers[-1].self_attn, "v_norm"):
        pytest.skip("its values are normalised: they have one scale")
    method, inputs = Steered(learning_rate=0.1, update_every=1, policy="minimize"), inputs_of(family, 2)
    results = [
        method.generate(values_scaled(random_family(family), s), **inputs, max_new_tokens=5, eos_token_id=None)
        for s in (1 / 64, 1, 64)
    ]
    assert_same_run(results)


def test_lite_or_its_refusal(family, model):
    """Half of each sample's video tokens go; positions are those of the whole prompt."""
    inputs, settings = inputs_of(family), {"max_new_tokens": 5, "eos_token_id": None}
    lite = Steered(prune_ratio=0.5)
    if family in NO_LITE:
        with pytest.raises(TypeError, match=NO_LITE[family]):
            lite.generate(model, **inputs, **settings)
        return
    kept, result = positions_of(model, lambda: lite.generate(model, **inputs, **settings))
    whole, _ = positions_of(model, lambda: METHOD.generate(model, **inputs, **settings))
    video = (inputs["mm_token_type_ids"] == 2).sum(1)
    assert [trace.video_tokens for trace in result.traces] == (video - video // 2).tolist()
    assert all(trace.updates > 0 for trace in result.traces)
    assert len(kept) == len(whole)
    assert all(torch.equal(*pair) for pair in zip(kept, whole, strict=True))
    for row, each in enumerate(prompts(family)):
        alone = lite.generate(model, **family_batch(family, [each]), **settings)
        assert torch.equal(result.sequences[row, -5:], alone.sequences[0, -5:])
        assert np.allclose(result.traces[row].entropy, alone.traces[0].entropy, rtol=2e-3, atol=2e-5)


def test_a_shared_prefix_or_its_refusal(family, model):
    """Two questions about one video and one about another, from prefixes that are prefilled once."""
    first, second = prompts(family)[:2]
    words = BATCH[0][1]
    if family in NO_PREFIX:
        with pytest.raises(TypeError, match=NO_PREFIX[family]):
            prefill(model, begun(family, first, words))
        return
    other = {"ids": [*first["ids"][:-words], 7, 8], "types": [*first["types"][:-words], 0, 0], "media": first["media"]}
    deltas = getattr(model.model, "rope_deltas", None)
    starts = [prefill(model, begun(family, *each)) for each in ((first, words), (second, BATCH[1][1]))]
    assert getattr(model.model, "rope_deltas", None) is deltas
    own, asked = [starts[0], starts[0], starts[1]], [first, other, second]
    suffixes = [torch.tensor(each["ids"][prefix.tokens :]) for prefix, each in zip(own, asked, strict=True)]
    settings = {"max_new_tokens": 5, "eos_token_id": None}
    for method in (VReason(policy="off"), METHOD):
        inputs = continued(model, own, suffixes)
        shared = method.generate(model, **inputs, **settings)
        alone = method.generate(model, **family_batch(family, asked), **settings)
        assert torch.equal(shared.sequences[:, -5:], alone.sequences[:, -5:])
        for ours, theirs in zip(shared.traces, alone.traces, strict=True):
            assert ours.video_tokens == theirs.video_tokens > 0
            assert np.allclose(ours.entropy, theirs.entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones_in_one_graph_each(family):
    """Slow: making two graphs takes seconds a family, even by ``aot_eager``, which generates no code."""
    model, inputs = random_family(family, layers=2 if family in NO_LITE else 1), inputs_of(family, 2)
    settings = {"max_new_tokens": 6, "eos_token_id": None}
    if "moe" in family:
        with pytest.raises(
            ValueError, match=r"does not compile on a CPU: .*set_experts_implementation\('batched_mm'\)"
        ):
            Steered(compile="on").generate(model, **inputs, **settings)
        model.set_experts_implementation("batched_mm")  # As decoding on a GPU has it.
    torch._dynamo.reset()
    counters.clear()
    compiled_due_step.cache_clear()
    try:
        eager = Steered(compile="off").generate(model, **inputs, **settings)
        backend = CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
        fast = Steered(compile="on").generate(model, **inputs, **settings, compile_config=backend)
        assert not counters["graph_break"]
        # transformers' sliding layers have graphs of their own before and after their window is full.
        assert counters["stats"]["unique_graphs"] == (4 if family in SLIDING_BELOW else 2)
    finally:
        torch._dynamo.reset()
        compiled_due_step.cache_clear()
    assert torch.equal(eager.sequences, fast.sequences)
    for ours, theirs in zip(eager.traces, fast.traces, strict=True):
        assert ours.updates == theirs.updates > 0
        assert np.allclose(ours.entropy, theirs.entropy, rtol=1e-4, atol=1e-4)
        assert np.array_equal(ours.alpha, theirs.alpha)


@pytest.mark.parametrize("what", ["attention's output", "logits"])
def test_a_tail_that_is_not_the_models_own_is_an_error(family, monkeypatch, what):
    """At the first update: something in the attention or after the head that the engine does not know of."""
    model = random_family(family)
    if what == "logits":
        monkeypatch.setattr(families.Tail, "logits", lambda tail, hidden, rows=None: tail.head(hidden) * 1.01)
    else:
        own = seam.own_attention

        def scaled(attention):
            function = own(attention)
            return lambda *args, **kwargs: (function(*args, **kwargs)[0] * 1.01, None)

        monkeypatch.setattr(seam, "own_attention", scaled)
    with pytest.raises(RuntimeError, match=f"cannot steer this {model.config.model_type} model.* its {what}"):
        METHOD.generate(model, **inputs_of(family, 1), max_new_tokens=3, eos_token_id=None)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_experts_decode_as_in_generate(family, monkeypatch):
    """After the prefill, and only then, within the context in which transformers decodes."""
    model, inside, seen = random_family(family), [], []

    @contextmanager
    def noting():
        inside.append(True)
        yield
        inside.pop()

    monkeypatch.setattr(model, "_optimize_model_for_decode", noting)
    model.register_forward_pre_hook(lambda module, args: seen.append(bool(inside)))
    METHOD.generate(model, **inputs_of(family, 1), max_new_tokens=4, eos_token_id=None)
    assert seen == [False, True, True, True]
    assert not inside


def test_the_model_is_left_as_it_was(family, model):
    """Hooks, attributes, configs, gradients' flags; and what it generates."""

    def state():
        return [
            (name, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in model.named_modules()
        ] + [parameter.requires_grad for parameter in model.parameters()]

    inputs, settings = inputs_of(family), {"max_new_tokens": 5, "eos_token_id": None}
    plain = model.generate(**plain_inputs(family, inputs), **settings)
    config, before = model.get_decoder().layers[-1].self_attn.config, state()
    METHOD.generate(model, **inputs, **settings)
    assert model.get_decoder().layers[-1].self_attn.config is config
    assert state() == before
    assert torch.equal(model.generate(**plain_inputs(family, inputs), **settings), plain)


@pytest.mark.parametrize("name", [name for name in FAMILIES if kind_of(name).multimodal])
def test_text_goes_on_after_the_highest_position(name):
    """What the decoder is called with is the rule of docs/positions.md, whoever computes it."""
    model, inputs = random_family(name), inputs_of(name)
    calls, _ = positions_of(model, lambda: METHOD.generate(model, **inputs, max_new_tokens=4, eos_token_id=None))
    prefill_ids = calls[0][-3:]
    per_second = {"qwen2_5_vl": 2, "qwen2_5_omni": 25}.get(name)
    config = SimpleNamespace(
        model_type="qwen2_5_vl" if per_second else "qwen2_vl",
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=per_second),
    )
    for row, each in enumerate(prompts(name)):
        runs = sum(after == 2 != before for before, after in pairwise(each["types"]))
        grids = torch.tensor([[frames_of(name, row) // runs, 4, 4]] * runs)
        ids = torch.tensor([VIDEO if kind == 2 else 0 for kind in each["types"]])
        expected = row_positions(ids, media_grids(config, video_grid_thw=grids), config)
        kept = inputs["attention_mask"][row].bool()
        assert torch.equal(prefill_ids[:, row, kept], expected)
        following = [int(call[-3:, row, -1].unique()) for call in calls if call.shape[-1] == 1]
        assert following == [int(expected.max()) + generated for generated in (1, 2, 3)]
