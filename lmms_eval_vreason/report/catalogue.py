"""Which benchmark a task belongs to, so that stock tasks and this package's stand side by side."""

import re
from collections.abc import Mapping, Sequence

# Task name, without this package's prefix → benchmark as it is written in papers. Order is the tables' order.
_BENCHMARKS = (
    (re.compile(r"video_mmmu(_(perception|comprehension|adaptation))?"), "VideoMMMU"),
    (re.compile(r"mmvu"), "MMVU"),
    (re.compile(r"mvbench(_\w+)?"), "MVBench"),
    (re.compile(r"tempcompass(_\w+)?"), "TempCompass"),
    (re.compile(r"videomme"), "Video-MME"),
    (re.compile(r"vsibench(_acc|_mra)?"), "VSI-Bench"),
)
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
