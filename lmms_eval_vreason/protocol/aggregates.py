"""From scored samples to a task's figures, and from tasks to the mean over benchmarks."""

import math
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

from lmms_eval.utils import simple_parse_args_string
from loguru import logger

# What a task's scorer keeps of one sample.
Item = dict[str, Any]


class BenchmarkMean(float):
    """A task's mean that remembers its benchmark: a group's aggregation gets bare figures and no task names.

    Attributes:
        benchmark: name of the column it belongs to.
        pooled: whether the tasks of this benchmark are pooled by questions; otherwise each task counts the same.
    """

    benchmark: str
    pooled: bool

    def __new__(cls, value: float, benchmark: str, pooled: bool) -> "BenchmarkMean":
        mean = super().__new__(cls, value)
        mean.benchmark, mean.pooled = benchmark, pooled
        return mean


def mean_score(items: Sequence[Item]) -> BenchmarkMean:
    """Mean of the items' ``score``; every item counts, answered or not."""
    return _mean(items, [item["score"] for item in items])


def mean_tokens(items: Sequence[Item], args: Namespace | None = None) -> BenchmarkMean:
    """Mean length of the items' ``text`` in tokens of the evaluated checkpoint; NaN if it has no tokenizer to load.

    One ruler for every model: the returned text, without special tokens and padding. lmms-eval's own token counts,
    where a model reports any, stand in the samples.
    """
    tokenizer = _tokenizer(_checkpoint(args))
    if tokenizer is None:
        return _mean(items, [math.nan])
    return _mean(items, [len(tokenizer.encode(item["text"], add_special_tokens=False)) for item in items])


def mean_over_benchmarks(means: Sequence[BenchmarkMean], sizes: Sequence[int], weight_by_size: bool) -> float:
    """A group's figure: tasks are joined to benchmarks by each benchmark's own rule, then benchmarks weigh the same."""
    tasks = defaultdict(list)
    for mean, size in zip(means, sizes, strict=True):
        tasks[mean.benchmark].append((mean, size if mean.pooled else 1))
    return fmean(fmean([m for m, _ in parts], [weight for _, weight in parts]) for parts in tasks.values())


def _mean(items: Sequence[Item], values: Sequence[float]) -> BenchmarkMean:
    return BenchmarkMean(fmean(values), items[0]["benchmark"], items[0]["pooled"])


def _checkpoint(args: Namespace | None) -> str | None:
    given = getattr(args, "model_args", None) or {}
    named = simple_parse_args_string(given) if isinstance(given, str) else given
    return named.get("pretrained") or named.get("model")


@cache
def _tokenizer(checkpoint: str | None) -> Any:
    if checkpoint is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        logger.warning(f"token lengths are unknown: no tokenizer in {checkpoint}: {error}")
        return None
