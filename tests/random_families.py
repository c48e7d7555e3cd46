"""A tiny random model of each family in memory, and prompts for it without a processor."""

from collections.abc import Sequence

import torch
from family_videos import END, PAD, WORDS
from tiny_families import TINY
from torch import Tensor

from lmms_eval_vreason.families.family import FAMILIES as TABLE
from lmms_eval_vreason.families.family import Family

FAMILIES = tuple(TINY)
SEQUENCES = ("input_ids", "attention_mask", "mm_token_type_ids")


def kind_of(family: str) -> Family:
    """Its line in the package's table."""
    return TABLE[TINY[family].model_type]


def random_family(
    family: str, *, layers: int = 2, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
):
    """A model of ``family`` with next-token entropies of about 0.5 to 4 nats, so that a policy has something to do."""
    torch.manual_seed(seed)
    model = TINY[family].of(TINY[family].config(layers), attention)
    with torch.no_grad():
        for parameter in model.parameters():
            # Whatever a family's own initialisation leaves empty or nearly so.
            if parameter.dim() > 1 and (not parameter.isfinite().all() or parameter.std() < 0.05):
                parameter.normal_(std=0.25 if parameter.shape[-1] < 400 else 0.05)
    model = model.to(dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    return model


def family_prompt(family: str, *, frames: int = 2, words: int = 4, seed: int = 0) -> dict:
    """Two words, a video, ``words`` more; ids, token types and media."""
    generator = torch.Generator().manual_seed(seed)
    ids, types, media = TINY[family].video(frames, generator)
    before, after = torch.randint(0, WORDS, (words + 2,), generator=generator).split([2, words])
    return {"ids": [*before.tolist(), *ids, *after.tolist()], "types": [0, 0, *types, *[0] * words], "media": media}


def family_batch(family: str, prompts: Sequence[dict], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Keyword arguments of :func:`lmms_eval_vreason.generate`, padded on the left."""
    length = max(len(each["ids"]) for each in prompts)
    pads = [length - len(each["ids"]) for each in prompts]

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([[fill] * n + each[name] for n, each in zip(pads, prompts, strict=True)])

    inputs = {"input_ids": padded("ids", PAD), "mm_token_type_ids": padded("types", 0)}
    inputs["attention_mask"] = (inputs["input_ids"] != PAD).long()
    for name in prompts[0]["media"]:
        values = torch.cat([each["media"][name] for each in prompts])
        inputs[name] = values.to(dtype) if values.is_floating_point() else values
    return inputs


def plain_inputs(family: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """``inputs`` as ``model.generate`` takes them."""
    return {name: value for name, value in inputs.items() if TINY[family].types or name != "mm_token_type_ids"}


def begun(family, each, words):
    """The arguments of ``prefill``: all but the last ``words`` of a prompt."""
    whole = family_batch(family, [each])
    return {name: value[:, :-words] if name in SEQUENCES else value for name, value in whole.items()}


def reference_logits(model, family, inputs, tokens, delta, states):
    """Without a cache, ΔV (video tokens, kv_heads, head_dim) where the last layer's values arise.

    Args:
        states: (batch, tokens, hidden_size), what goes into the last layer, if not what the layers below give.
    """
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    longer = {**plain_inputs(family, inputs), "input_ids": ids}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in longer:
            longer[name] = torch.cat([inputs[name], torch.full_like(tokens, fill)], dim=1)
    if kind_of(family).positions == "plain":
        # A forward of its own would count the padding, and rotary angles are in float32.
        longer["position_ids"] = (longer["attention_mask"].cumsum(1) - 1).clamp(min=0)
    where = torch.cat([inputs["mm_token_type_ids"] == 2, torch.zeros_like(tokens, dtype=torch.bool)], dim=1)
    layer = model.get_decoder().layers[-1]

    def add(module, args, output):
        values = output.unflatten(-1, (-1, layer.self_attn.head_dim)) if output.dim() == 3 else output
        moved = values[where] + delta
        moved = moved * (values[where].norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True))
        return values.index_put(where.nonzero(as_tuple=True), moved).view_as(output)

    def replace(module, args, kwargs):
        return (args if states is None else (states, *args[1:])), kwargs

    # Some families normalise their values after the projection.
    values_of = getattr(layer.self_attn, "v_norm", None) or layer.self_attn.v_proj
    hooks = [
        values_of.register_forward_hook(add),
        layer.register_forward_pre_hook(replace, with_kwargs=True),
    ]
    try:
        return model(**longer, use_cache=False).logits[:, -1]
    finally:
        for hook in hooks:
            hook.remove()


def positions_of(model, run):
    """What the decoder's rotary embedding is called with, and what ``run`` gives."""
    calls = []

    def note(module, args, kwargs):
        calls.append((args[1] if len(args) > 1 else kwargs["position_ids"]).clone())

    hook = model.get_decoder().rotary_emb.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return calls, run()
    finally:
        hook.remove()
