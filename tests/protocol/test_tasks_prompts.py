"""Prompts of both groups, letter for letter, and the templates that make them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lmms_eval.utils import load_yaml_config
from offline_documents import benchmarks

from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.protocol import prompt_templates as templates

SNAPSHOTS = Path(__file__).parent / "test_tasks_prompts.json"
DATASETS = {(repository, config): rows for repository, config, _, rows, _, _ in benchmarks(10)}
TASK_FILES = sorted(
    path
    for path in (tasks_dir() / "vreason").rglob("*.yaml")
    if isinstance(yaml.load(path.read_text(), Loader=yaml.BaseLoader).get("task"), str)
)


def task(path: Path) -> dict:
    return load_yaml_config(str(path), mode="full")


def documents(config: dict) -> list[dict]:
    """The rows that the task keeps, one for each type of question."""
    rows = DATASETS[config["dataset_path"], config.get("dataset_name", "default")]
    keep = config.get("process_docs", lambda dataset: dataset)(_Rows(rows))
    return list(keep)[:2] + list(keep)[3:4]


class _Rows(list):
    """What a task's ``process_docs`` asks of a dataset."""

    def filter(self, keep: Callable[[dict], bool]) -> "_Rows":
        return _Rows(row for row in self if keep(row))


def prompts() -> dict[str, list[str]]:
    configs = [task(path) for path in TASK_FILES]
    return {config["task"]: [config["doc_to_text"](doc, {}) for doc in documents(config)] for config in configs}


def test_prompts_are_the_snapshots() -> None:
    """A changed prompt makes figures incomparable: change the snapshots only together with the protocol's version."""
    assert prompts() == json.loads(SNAPSHOTS.read_text(encoding="utf-8"))


def test_both_groups_hold_the_same_tasks() -> None:
    names = {task(path)["task"] for path in TASK_FILES}
    direct = {name for name in names if name.startswith("vreason_direct_")}
    assert {name.replace("vreason_direct_", "vreason_") for name in direct} == names - direct
    assert len(direct) == 30


def test_a_chain_of_thought_prompt_asks_for_both_tags_and_a_direct_one_for_none() -> None:
    for name, texts in prompts().items():
        for text in texts:
            assert ("<think>" in text and "<answer>" in text) is not name.startswith("vreason_direct_")


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: "-".join(path.parts[-2:]))
def test_task_files(path: Path) -> None:
    config = task(path)
    direct = config["task"].startswith("vreason_direct_")
    settings = config["generation_kwargs"]
    assert settings["max_new_tokens"] == (32 if direct else 1024)
    assert (settings["do_sample"], settings["temperature"], settings["until"]) == (False, 0, [])
    assert (config["cluster_key"], config["reasoning_tags"]) == ("video", "none")
    assert {"model", "default"}.isdisjoint(config.get("lmms_eval_specific_kwargs", {}).get("default", {}))
    assert set(config.get("lmms_eval_specific_kwargs", {})) <= {"default"}
    doc = documents(config)[0]
    figures = config["process_results"](doc, ["<answer>B</answer>"])
    assert set(figures) == {metric["metric"] for metric in config["metric_list"]}
    assert figures["score"]["template"] == config["metadata"]["template_digest"]
    assert config["metadata"]["version"] == templates.PROTOCOL_VERSION
    assert figures["score"]["video"]


def test_another_template_for_the_chain_of_thought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = dict.fromkeys(templates.ANSWER_TYPES, "Say it.")
    file = tmp_path / "rl.yaml"
    file.write_text(yaml.safe_dump({"prompt": "Q: {question} {answer_type} {{x}}", "answer_type": sentences}))
    path = next(path for path in TASK_FILES if path.parts[-2:] == ("cot", "vsibench_mra.yaml"))
    before = task(path)["metadata"]
    monkeypatch.setenv(templates.TEMPLATE_VARIABLE, str(file))
    config = task(path)
    doc = documents(config)[0]
    assert config["doc_to_text"](doc, {}) == f"Q: {doc['question']} Say it. {{x}}"
    assert config["metadata"]["template"] == "rl"
    assert config["metadata"]["template_digest"] != before["template_digest"]
    figures = config["process_results"](doc, ["4"])
    assert figures["score"]["template"] == config["metadata"]["template_digest"]
    direct = task(path.parent.parent / "direct" / path.name)
    assert direct["metadata"]["template"] == "direct"


SENTENCES = dict.fromkeys(templates.ANSWER_TYPES, "Say it.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"prompt": "{question}"}, "exactly the keys"),
        (["{question}"], "exactly the keys"),
        ({"prompt": 1, "answer_type": SENTENCES}, "must be text"),
        ({"prompt": "{question}", "answer_type": {"choice": "x"}}, "no sentence for the answer type label"),
        ({"prompt": "{question} {option}", "answer_type": SENTENCES}, "unknown field"),
        ({"prompt": "{answer_type}", "answer_type": SENTENCES}, "lacks the field"),
        ({"prompt": "{question} {", "answer_type": SENTENCES}, "literal brace"),
    ],
)
def test_a_broken_template_is_named(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message) as error:
        templates.load_template(file)
    assert str(file) in str(error.value)


def test_the_digest_follows_the_text_and_not_the_name(tmp_path: Path) -> None:
    content = {"prompt": "{question}", "answer_type": SENTENCES}
    digests = []
    for name, prompt in (("a", "{question}"), ("b", "{question}"), ("c", "{question} ")):
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content | {"prompt": prompt}))
        digests.append(templates.load_template(file).digest)
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(AttributeError, match="no attribute 'metadata'"):
        templates.metadata  # noqa: B018


@pytest.mark.parametrize("content", ["prompt: [", "prompt: '{question}'", None])
def test_a_broken_template_ends_lmms_eval_with_its_cause(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval reads a task file's functions so, and turns any Exception into one that does not name the cause."""
    file = tmp_path / "broken.yaml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(templates.TEMPLATE_VARIABLE, str(file))
    with pytest.raises(SystemExit, match=r"broken\.yaml") as caught:
        templates.cot_metadata  # noqa: B018
    assert "\n" not in str(caught.value)
