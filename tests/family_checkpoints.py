"""A tiny checkpoint of a family on disk, with the family's real processor: what ``from_pretrained`` loads."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_families import TINY

from lmms_eval_vreason.shapes.architecture import build_generation_config, build_processor
from lmms_eval_vreason.shapes.vocabulary import build_tokenizer

ROLES = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
END = "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OPENED = "{% if add_generation_prompt and enable_thinking is not false %}<think>\n{% endif %}"
PLACEHOLDERS = {
    "llava_onevision": ("<image>", "<video>\n"),
    "internvl": ("<IMG_CONTEXT>\n", "<video>\n"),
    "smolvlm": ("<image>", "<video>"),
}
# Attributes of a family's tokenizer, and their tokens.
TOKENS = {
    "llava_onevision": {"image_token": "<image>", "video_token": "<video>"},
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "smolvlm": {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "video_token": "<video>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    },
}
SIDE = {"height": 56, "width": 56}


def template(family: str, *, opens: bool = False) -> str:
    """A chat template that writes roles, text and media as the family's processor expects them."""
    if family.startswith("qwen"):
        return str(build_processor().chat_template) + (OPENED if opens else "")
    image, video = PLACEHOLDERS[family]
    part = f"{{% if part['type'] == 'text' %}}{{{{ part['text'] }}}}{{% elif part['type'] == 'image' %}}{image}"
    return ROLES + part + f"{{% else %}}{video}{{% endif %}}" + END + (OPENED if opens else "")


def tokenizer_of(family: str) -> Any:
    own = TOKENS.get(family, {})
    made = build_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(own.values())}, replace_extra_special_tokens=False)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=own or {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        padding_side="left",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def processor_of(family: str, *, opens: bool = False) -> Any:
    """The family's processor, for frames of any size or, where it resizes, of 56 x 56 pixels."""
    if family == "qwen2_5_vl":
        return build_processor()
    tokenizer, chat = tokenizer_of(family), template(family, opens=opens)
    if family.startswith("qwen"):
        new = family != "qwen2_vl"
        patches: dict[str, Any] = {"patch_size": 16 if new else 14, "merge_size": 2, "temporal_patch_size": 2}
        size = {"shortest_edge": 56 * 56, "longest_edge": 12845056}
        video = hf.Qwen3VLVideoProcessor if new else hf.Qwen2VLVideoProcessor
        return (hf.Qwen3VLProcessor if new else hf.Qwen2VLProcessor)(
            image_processor=hf.Qwen2VLImageProcessor(size=dict(size), **patches),
            tokenizer=tokenizer,
            video_processor=video(size=dict(size), **patches),
            chat_template=chat,
        )
    if family == "llava_onevision":
        return hf.LlavaOnevisionProcessor(
            image_processor=hf.LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=[[56, 56]]),
            tokenizer=tokenizer,
            video_processor=hf.LlavaOnevisionVideoProcessor(size=SIDE),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=chat,
        )
    if family == "internvl":
        return hf.InternVLProcessor(
            image_processor=hf.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=4),
            tokenizer=tokenizer,
            video_processor=hf.InternVLVideoProcessor(size=SIDE),
            image_seq_length=4,
            chat_template=chat,
        )
    edge = {"longest_edge": 56}
    return hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(size=edge, max_image_size=edge),
        tokenizer=tokenizer,
        video_processor=hf.SmolVLMVideoProcessor(
            max_image_size=edge, size=edge, video_sampling={"max_frames": 64, "fps": 1, "video_size": dict(edge)}
        ),
        image_seq_len=4,
        chat_template=chat,
    )


def family_checkpoint(folder: Path, family: str, *, opens: bool = False) -> Path:
    """A tiny untrained checkpoint whose weights bfloat16 holds, so that every dtype runs the same ones.

    Args:
        family: A name of ``TINY``.
        opens: The template opens ``<think>``, as those of thinking checkpoints do, unless ``enable_thinking`` is false.
    """
    processor = processor_of(family, opens=opens)
    tokenizer, tiny = processor.tokenizer, TINY[family]
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.get(family, {}).items()}
    token = tokenizer.convert_tokens_to_ids
    config = tiny.config(2)
    config["text_config"] |= {
        "vocab_size": len(tokenizer),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    known = {
        "video": ids.get("video_token", token("<|video_pad|>")),
        "image": ids.get("context_image_token", ids.get("image_token", token("<|image_pad|>"))),
        "vision_start": token("<|vision_start|>"),
        "vision_end": token("<|vision_end|>"),
        "pad": token("<|endoftext|>"),
    }
    for name in [name for name in config if name.endswith(("_token_id", "_token_index"))]:
        config[name] = known[name.rsplit("_token", 1)[0]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny.of(config, "sdpa").eval()
    model.to(torch.bfloat16).to(torch.float32)
    model.generation_config = build_generation_config(tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
