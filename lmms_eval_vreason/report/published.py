"""Figures that the paper published, to stand beside re-run ones: never re-run here, and marked so wherever shown.

Source: "Video Reasoning without Training" (arXiv 2510.17045), the bars of its project page; token counts from its
efficiency figure. "Lite" is the page's "Pruned".
"""

from dataclasses import dataclass

from lmms_eval_vreason.report.catalogue import ORDER

SOURCE = "arXiv 2510.17045, project page; published, not re-run"


@dataclass(frozen=True)
class Published:
    """One published model: scores in percent in the order of ``ORDER``, and mean output tokens over benchmarks."""

    label: str
    scores: tuple[float, ...]
    output_tokens: float

    def by_benchmark(self) -> dict[str, float]:
        return dict(zip(ORDER, self.scores, strict=True))


PUBLISHED = (
    Published("Qwen2.5-VL-7B, CoT prompt", (45.8, 61.3, 60.7, 72.4, 53.7, 33.8, 22.3), 226),
    Published("V-Reason-7B", (46.3, 62.7, 60.9, 73.3, 54.9, 37.1, 23.4), 176),
    Published("V-Reason-7B Lite", (47.4, 65.0, 60.6, 72.3, 53.5, 37.3, 23.7), 178),
    Published("Video-R1-7B", (48.8, 64.0, 64.1, 73.3, 58.7, 30.9, 39.2), 430),
)
