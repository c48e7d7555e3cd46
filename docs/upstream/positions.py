"""Where transformers places text after a video of Qwen2.5-VL, seen from ``generate``. A random model, no download."""

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

TEXT_BEFORE, TEXT_AFTER, VIDEO_TOKEN = 15, 40, 151
GRID = (16, 20, 36)  # time, height, width in patches: 16 x 10 x 18 tokens after merging 2 x 2
SECONDS_PER_GRID, TOKENS_PER_SECOND = 7.5, 4


def tiny_model() -> Qwen2_5_VLForConditionalGeneration:
    size = {"hidden_size": 32, "intermediate_size": 32}
    text = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 200}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}}
    text |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "tokens_per_second": TOKENS_PER_SECOND}
    config = Qwen2_5_VLConfig(text_config=size | text, vision_config=size | vision, video_token_id=VIDEO_TOKEN)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def main() -> None:
    torch.manual_seed(0)
    model = tiny_model()
    video = GRID[0] * GRID[1] * GRID[2] // 4
    end = TEXT_BEFORE + video
    ids = torch.tensor([[1] * TEXT_BEFORE + [VIDEO_TOKEN] * video + [1] * TEXT_AFTER])
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"][-3:, 0]), with_kwargs=True
    )
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=torch.where(ids == VIDEO_TOKEN, 2, 0),
        pixel_values_videos=torch.randn(GRID[0] * GRID[1] * GRID[2], 3 * 2 * 14 * 14),
        video_grid_thw=torch.tensor([GRID]),
        second_per_grid_ts=torch.tensor([SECONDS_PER_GRID]),
        max_new_tokens=2,
        do_sample=False,
    )
    prompt, generated = seen[0], seen[1]
    time = prompt[0].tolist()
    text = int(prompt[:, :end].max()) + 1
    print(f"transformers {transformers.__version__}")
    print(f"video's time    {time[TEXT_BEFORE]} to {time[end - 1]}")
    print(f"text after it   {time[end]} to {time[-1]}")
    print(f"first generated {int(generated[0, -1])}")
    print(f"up to 5.2       text {text} to {text + TEXT_AFTER - 1}, first generated {text + TEXT_AFTER}")


if __name__ == "__main__":
    main()
