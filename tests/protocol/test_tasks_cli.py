"""The groups through lmms-eval's own command: the same prompts for every model, known scores, no network."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from offline import OfflineBenchmarks, Run, run_lmms_eval, scripted_checkpoint

from lmms_eval_vreason.journal.files import read_records
from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.protocol.prompt_templates import ANSWER_TYPES, TEMPLATE_VARIABLE, cot_template, load_template

pytestmark = pytest.mark.cli

THOUGHT, ANSWER = "<think>hm so</think>", "<answer>B</answer>"
VIDEO = {"max_num_frames": 4, "min_pixels": 784, "max_pixels": 12544}
# Of an even document every question but two types has the answer B; that is what the checkpoint says to all of them.
UNANSWERED = ("vreason_tempcompass_yes_no", "vreason_vsibench_mra")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_checkpoint(tmp_path_factory.mktemp("scripted"), THOUGHT + ANSWER)


def group(offline: OfflineBenchmarks, output: Path, model: str, tasks: list[str], limit: int, **args: object) -> Run:
    extra = ["--include_path", str(tasks_dir()), "--limit", str(limit)]
    return run_lmms_eval(
        offline.env, model=model, model_args={**VIDEO, **args}, tasks=tasks, output=output, extra=extra
    )


def prompts(run: Run) -> dict[str, list[str]]:
    return {task: [sample["input"] for sample in samples] for task, samples in run.samples.items()}


def test_stock_model_and_ours_on_the_group(offline: OfflineBenchmarks, checkpoint: Path, tmp_path: Path) -> None:
    stock = {"device": "cpu", "device_map": "cpu", "attn_implementation": "sdpa"}
    runs = [
        group(offline, tmp_path / "stock", "qwen2_5_vl", ["vreason"], 1, pretrained=checkpoint, **stock),
        group(offline, tmp_path / "ours", "qwen2_5_vl_vreason", ["vreason"], 1, pretrained=checkpoint),
    ]
    assert len(runs[0].samples) == 30
    assert prompts(runs[0]) == prompts(runs[1])
    for run in runs:
        scores = {task: run.metric(task, "score") for task in run.samples}
        assert scores == {task: float(task not in UNANSWERED) for task in run.samples}
        # Seven columns: TempCompass pools its three parts, of which one is unanswered, and MRA has no answer at all.
        assert run.metric("vreason", "score") == pytest.approx((5 + 2 / 3) / 7)
        assert run.metric("vreason", "answer_found") == pytest.approx((5 + 2 / 3) / 7)
        assert run.metric("vreason_without_mra", "score") == pytest.approx((5 + 2 / 3) / 6)
        assert run.metric("vreason_tempcompass", "score") == pytest.approx(2 / 3)
        assert run.metric("vreason_mvbench", "score") == run.metric("vreason_video_mmmu", "score") == 1
        assert run.metric("vreason", "cut") == 0
        assert run.metric("vreason", "thinking_tokens") == 3
        digest = cot_template().digest
        assert {config["metadata"]["template_digest"] for config in run.results["configs"].values()} == {digest}
        assert {sample["score"]["template"] for samples in run.samples.values() for sample in samples} == {digest}
    journal = read_records(tmp_path / "ours" / "vreason_journal")
    sent = {line["task"]: line["prompt"] for line in journal if line["kind"] == "sample"}
    assert sent == {task: texts[0] for task, texts in prompts(runs[1]).items()}
    assert offline.network_calls() == []


def test_direct_group_and_another_template(offline: OfflineBenchmarks, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "rl.yaml"
    file.write_text(
        yaml.safe_dump({"prompt": "Q: {question} {answer_type}", "answer_type": dict.fromkeys(ANSWER_TYPES, "Say it.")})
    )
    rl = replace(offline, env={**offline.env, TEMPLATE_VARIABLE: str(file)})
    tasks = ["vreason_direct", "vreason_videomme", "vreason_videomathqa_w_subtitles"]
    args = {"pretrained": checkpoint, "thinking": "off", "max_answer_tokens": 16}
    run = group(rl, tmp_path / "out", "qwen2_5_vl_vreason", tasks, 3, **args)
    assert len(run.samples) == 30 + 1 + 4
    assert run.metric("vreason_direct_videomme", "score") == pytest.approx(2 / 3)
    assert run.metric("vreason_direct_vsibench_mra", "answer_found") == 0
    assert run.metric("vreason_direct_videomme", "score_stderr_clustered") > 0
    assert run.samples["vreason_videomme"][0]["input"].startswith("Q: Which shape")
    configs = run.results["configs"]
    subtitled = [configs.pop(task) for task in list(configs) if task.startswith("videomathqa_")]
    assert [config["lmms_eval_specific_kwargs"]["default"]["frame_num"] for config in subtitled] == [768] * 4
    digests = {task: config["metadata"]["template_digest"] for task, config in configs.items()}
    assert digests.pop("vreason_videomme") == load_template(file).digest
    assert run.samples["vreason_videomme"][0]["score"]["template"] == load_template(file).digest
    assert len(set(digests.values())) == 1
    assert offline.network_calls() == []
