"""The six benchmarks: which tasks belong to each, and the scores that the paper published for them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Task name, without this package's prefix → benchmark as it is written in papers. Order is the tables' order.
_BENCHMARKS = (
    (re.compile(r"video_mmmu(_(perception|comprehension|adaptation))?"), "VideoMMMU"),
    (re.compile(r"mmvu"), "MMVU"),
    (re.compile(r"mvbench(_\w+)?"), "MVBench"),
    (re.compile(r"tempcompass(_\w+)?"), "TempCompass"),
    (re.compile(r"videomme"), "Video-MME"),
    (re.compile(r"vsibench(_acc|_mra)?"), "VSI-Bench"),
)
# Stock task, or what the names of its parts begin with → its questions. Sources: the papers (arXiv 2405.21075,
# 2501.13826, 2311.17005, 2501.12380) and the cards of the datasets on the hub (nyu-visionx/VSI-Bench,
# lmms-lab/TempCompass). Of MMVU's questions this package's task asks the multiple-choice ones alone.
SIZES = {
    "videomme": 2700,
    "video_mmmu": 900,
    "mvbench": 4000,
    "mmvu_val": 1000,
    "vsibench": 5130,
    "tempcompass_multi_choice": 1580,
    "tempcompass_yes_no": 2453,
    "tempcompass_caption_matching": 1503,
    "tempcompass_captioning": 2004,
}
VSI_ACCURACY, VSI_MRA = "VSI-Bench (accuracy)", "VSI-Bench (MRA)"
ORDER = ("VideoMMMU", "MMVU", "MVBench", "TempCompass", "Video-MME", VSI_ACCURACY, VSI_MRA)


def part_of(task: str) -> str:
    """The task's name shared by the stock task and this package's variant: the same documents in the same order."""
    part = re.sub(r"^vreason_(direct_)?|(?<=.)_direct$", "", task)
    part = re.sub(r"^videommmu", "video_mmmu", part)
    return re.sub(r"^mmvu(_val)?(_cot)?$", "mmvu", part)


def benchmark_of(task: str, groups: Mapping[str, Sequence[str]]) -> str:
    """The benchmark's name: one of the six, else the smallest group that holds the task, else the task itself.

    Args:
        task: lmms-eval's task name.
        groups: ``group_subtasks`` of the results file: group → names of tasks and groups in it.
    """
    part = part_of(task)
    for pattern, name in _BENCHMARKS:
        if pattern.fullmatch(part):
            return name
    holders = [group for group, members in groups.items() if group != task and task in members]
    return min(holders, key=lambda group: len(groups[group])) if holders else part


def sort_key(benchmark: str) -> tuple[int, str]:
    """Orders benchmarks as the paper does, and others after them by name."""
    return (ORDER.index(benchmark) if benchmark in ORDER else len(ORDER), benchmark)


# The bars of the paper's project page; token counts from its efficiency figure. "Lite" is the page's "Pruned". These
# figures are never re-run here, and are marked so wherever shown.
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
