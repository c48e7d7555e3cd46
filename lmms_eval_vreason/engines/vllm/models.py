"""vLLM's models, which leave at each forward what the last decoder layer reads and what the final norm gives.

Both are copied into buffers that stay where they are: part of a full CUDA graph, and eager around a piecewise one.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from lmms_eval_vreason.engines.vllm.tail import weights_of
from lmms_eval_vreason.families.positions import media_grids, row_positions


class Watched:
    """What both models add to vLLM's own.

    Attributes:
        residual, final: (tokens, hidden_size), the last decoder layer's input and the final norm's output.
        positions: (3, tokens), the rotary positions.
        tail_weights: Copies of the last layer's, where the backend packs its own away; else empty.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        decoder = self.language_model.model  # type: ignore[attr-defined]
        # The seam that EAGLE-3 reads from: the residual stream in front of a layer.
        self.set_aux_hidden_state_layers((len(decoder.layers) - 1,))  # type: ignore[attr-defined]
        size = vllm_config.scheduler_config.max_num_batched_tokens, decoder.config.hidden_size
        dtype = vllm_config.model_config.dtype
        self.residual, self.final = torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
        self.positions = torch.zeros(3, size[0], dtype=torch.long)
        self.tail_weights: dict[str, Tensor] = {}

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As vLLM's own."""
        final: Tensor
        final, (residual,) = super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
        )
        self.residual[: len(residual)].copy_(residual)
        self.final[: len(final)].copy_(final)
        self.positions[:, : positions.shape[-1]].copy_(positions)
        return final

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As vLLM's own."""
        loaded: set[str] = super().load_weights(weights)  # type: ignore[misc]
        if current_platform.is_cpu():
            # That backend packs linear weights for its own kernels and drops them.
            self.tail_weights = {name: weight.clone() for name, weight in weights_of(self).items()}
        return loaded


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class Qwen2_5_VLVReason(Watched, Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen2.5-VL."""

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """(3, tokens) positions of a prompt, and what a generated token's column differs from its position by.

        vLLM's rule, too, but a frame's time in float32 as in training: in float64 some fall on the next whole number.
        """
        fields: dict[str, list[Tensor]] = {"image_grid_thw": [], "video_grid_thw": [], "second_per_grid_ts": []}
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            kind = feature.modality
            fields[f"{kind}_grid_thw"].append(feature.data[f"{kind}_grid_thw"].data.reshape(3))
            if kind == "video":
                seconds = feature.data.get("second_per_grid_ts")
                fields["second_per_grid_ts"].append(torch.ones(()) if seconds is None else seconds.data.reshape(()))
        media = {name: torch.stack(values) if values else None for name, values in fields.items()}
        positions = row_positions(torch.tensor(input_tokens), media_grids(self.config, **media), self.config)
        return positions, int(positions.max()) + 1 - len(input_tokens)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class Qwen3VLVReason(Watched, Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """Qwen3-VL."""
