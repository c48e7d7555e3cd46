"""The first requests of lmms-eval's tasks, as its own evaluator builds them."""

from contextlib import suppress
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from lmms_eval_vreason.paths import tasks_dir


class _Collected(Exception):
    """Ends the evaluation where the model would answer."""


class _Collector(lmms):  # type: ignore[misc]  # lmms-eval ships no types.
    """A model that takes the requests and answers none."""

    is_simple = False

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.requests = requests
        raise _Collected

    loglikelihood = generate_until_multi_round = generate_until


def first_requests(
    tasks: str, limit: int, include_path: str | None, model: str = "qwen2_5_vl_vreason"
) -> tuple[list[Instance], dict[str, Any]]:
    """The requests on the first ``limit`` documents of each task, and the documents as lmms-eval's ``task_dict``.

    Args:
        tasks: Names with commas between, lmms-eval's or this package's.
        include_path: A folder with further tasks.
        model: Whose prompts the tasks use.

    Raises:
        ValueError: A task that does not exist, or that does not ask for text.
    """
    folders = [str(tasks_dir()), *([include_path] if include_path else [])]
    manager = TaskManager("WARNING", include_path=folders, model_name=model)
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        if not manager.match_tasks([name]):
            raise ValueError(f"--tasks {name}: lmms-eval has no such task (`lmms-eval tasks` lists them)")
    collector = _Collector()
    with suppress(_Collected):
        simple_evaluate(collector, tasks=manager.match_tasks(names), limit=limit, task_manager=manager)
    asking = {request.task_name for request in collector.requests if request.request_type == "generate_until"}
    if other := sorted(set(collector.task_dict) - asking):
        raise ValueError(f"--tasks {other[0]} does not ask for text: choose tasks of output_type generate_until")
    return collector.requests, collector.task_dict
