"""The norm of V that an update keeps: V_new = (V + ΔV) / ‖V + ΔV‖ · ‖V‖ (paper), and the gradient through it."""

import torch
from torch import Tensor

from lmms_eval_vreason.method.kernels import scaled_rows, scaled_rows_gradient


class KeptNorm:
    """‖V‖ over what ``kind`` keeps it: per token and KV head, per token, over a sample's whole video, or not at all.

    Attributes:
        length: ‖V‖, (batch, kv_heads, tokens, 1), (batch, 1, tokens, 1) or (batch, 1, 1, 1); None for ``none``.
    """

    def __init__(self, values: Tensor, video: Tensor, kind: str) -> None:
        """Args: ``values`` (batch, kv_heads, tokens, head_dim); ``video`` (batch, 1, tokens, 1) bool."""
        self.kind, self.video = kind, video
        self.length: Tensor | None = None
        if kind == "cache":
            self.length = self._of_videos(values)
        elif kind != "none":
            rows = self._rows(values)
            # The very kernel that divides by it later on.
            norms = scaled_rows(rows, rows.new_ones(len(rows), 1))[1]
            batch, kv_heads, tokens, _ = values.shape
            self.length = norms.view(batch, kv_heads if kind == "head" else 1, tokens, 1)

    def moved(self, moved: Tensor) -> Tensor:
        """V_new from V + ΔV, the shape of V. Where ΔV is 0, V_new is V to the bit."""
        if self.length is None:
            return moved
        if self.kind == "cache":
            return moved * torch.where(self.video, self.length / self._of_videos(moved), 1.0)
        return self._from_rows(scaled_rows(self._rows(moved), self.length.view(-1, 1))[0], moved)

    def gradient(self, moved: Tensor, gradient: Tensor) -> Tensor:
        """dL/dΔV from dL/dV_new, which is 0 where no video is: (‖V‖ / ‖m‖) (I - u uᵀ) dL/dV_new, u = m / ‖m‖.

        Args:
            moved, gradient: m = V + ΔV and dL/dV_new, the shape of V each.
        """
        if self.length is None:
            return gradient
        if self.kind == "cache":
            norm = self._of_videos(moved)
            # Twice, since the square of a tiny norm would be 0.
            along = (moved * gradient).sum(dim=(1, 2, 3), keepdim=True) / norm / norm
            return self.length / norm * torch.where(self.video, gradient - along * moved, 0.0)
        rows = scaled_rows_gradient(self._rows(gradient), self._rows(moved), self.length.view(-1, 1))
        return self._from_rows(rows, moved)

    def _of_videos(self, values: Tensor) -> Tensor:
        """(batch, 1, 1, 1), the norm of each sample's video values; tiny instead of 0."""
        norms: Tensor = torch.linalg.vector_norm(values * self.video, dim=(1, 2, 3), keepdim=True)
        return norms.clamp_min(torch.finfo(values.dtype).tiny)

    def _rows(self, x: Tensor) -> Tensor:
        """(rows, entries): one row for each norm that is kept."""
        return x.flatten(0, 2) if self.kind == "head" else x.transpose(1, 2).flatten(2).flatten(0, 1)

    def _from_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        batch, kv_heads, tokens, head_dim = like.shape
        if self.kind == "head":
            return rows.view(batch, kv_heads, tokens, head_dim)
        return rows.view(batch, tokens, kv_heads, head_dim).transpose(1, 2)
