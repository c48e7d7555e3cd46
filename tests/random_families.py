"""A tiny random model of each family in memory, and prompts for it without a processor."""

from collections.abc import Sequence

import torch
from family_videos import END, PAD, WORDS
from tiny_families import TINY
from torch import Tensor

FAMILIES = tuple(TINY)


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
