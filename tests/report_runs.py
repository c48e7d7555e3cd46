"""Synthetic runs in the files that lmms-eval 0.7.3 and this package's journal really write."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmms_eval_vreason.journal.writer import Journal

ARRAYS = ("tokens", "entropy", "ema", "peak", "alpha", "entropy_change", "shift", "grad_norm", "changed")
DATE = "20250101_120000"
LETTERS = "ABCD"


def letter(doc_id: int, right: bool) -> str:
    """The answer of a document whose gold is ``B`` for even, ``A`` for odd ids."""
    gold = LETTERS[(doc_id + 1) % 2]
    return gold if right else "C"


def videomme(doc_id: int, score: float) -> dict[str, Any]:
    answer = letter(doc_id, bool(score))
    metric = {
        "question_id": f"{doc_id // 3:03d}-{doc_id % 3 + 1}",
        "duration": "short",
        "category": "Knowledge",
        "sub_category": "Astronomy",
        "task_category": "Action Recognition",
        "pred_answer": answer,
        "answer": letter(doc_id, True),
        "score": score,
        "videoID": f"clip{doc_id // 3}",
    }
    return {"filtered_resps": answer, "videomme_perception_score": metric}


def mvbench(doc_id: int, score: float) -> dict[str, Any]:
    answer = letter(doc_id, bool(score))
    metric = {"pred_answer": answer, "gt_answer": letter(doc_id, True), "score": int(score)}
    return {"filtered_resps": answer, "mvbench_accuracy": metric}


def mmvu(doc_id: int, score: float) -> dict[str, Any]:
    metric = {"question_id": f"validation_{doc_id}", "category": "Chemistry", "correct": int(score)}
    return {"filtered_resps": letter(doc_id, bool(score)), "accuracy": metric}


def videommmu(doc_id: int, score: float) -> dict[str, Any]:
    kind, gold = ("multiple-choice", "B") if doc_id % 2 else ("open", "4")
    predicted = ("B" if score else "C") if doc_id % 2 else ([4.0] if score else [5.0])
    metric = {"id": f"validation_Art_{doc_id}", "question_type": kind, "answer": gold, "parsed_pred": predicted}
    return {"filtered_resps": gold if score else "5", "mmmu_acc": metric}


def tempcompass(doc_id: int, score: float) -> dict[str, Any]:
    metric = {"video_id": str(1000 + doc_id // 2), "rating": int(score), "dim": "action", "match_success": True}
    return {"filtered_resps": "yes", "avg_accuracy": metric, "action_accuracy": metric}


def vsibench(doc_id: int, score: float) -> dict[str, Any]:
    numeric = doc_id % 2 == 1
    doc = {"id": doc_id, "dataset": "scannet", "scene_name": f"scene{doc_id // 6}", "prediction": "4"}
    doc |= {"question_type": "object_counting" if numeric else "route_planning"}
    doc |= {"MRA:.5:.95:.05": score} if numeric else {"accuracy": float(score >= 0.5)}
    return {"filtered_resps": "4", "vsibench_overall": doc, "object_counting_mra": doc}


def plain(doc_id: int, score: float) -> dict[str, Any]:
    """A task that nobody here knows: one numeric metric."""
    return {"filtered_resps": "words", "quality": score}


STOCK: dict[str, tuple[str, Callable[[int, float], dict]]] = {
    "videomme": ("videomme_perception_score", videomme),
    "mvbench_action_count": ("mvbench_accuracy", mvbench),
    "mmvu_val": ("accuracy", mmvu),
    "video_mmmu_perception": ("mmmu_acc", videommmu),
    "tempcompass_yes_no": ("avg_accuracy", tempcompass),
    "vsibench": ("vsibench_overall", vsibench),
    "some_task": ("quality", plain),
}


def write_run(
    folder: Path,
    scores: Mapping[str, Sequence[float]],
    *,
    model_args: str = "pretrained=tiny",
    date: str = DATE,
    prompt: str = "Which shape moves?",
    response: str | None = None,
    tokens: int | None = 40,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes a results file and one samples file a task: ``scores`` maps a task to the scores of documents 0, 1, ….

    Returns:
        The folder that ``vreason report`` is given.
    """
    inner, results, configs = folder / "tiny", {}, {}
    inner.mkdir(parents=True, exist_ok=True)
    for task, values in scores.items():
        metric, make = STOCK[task]
        configs[task] = {"task": task, "metric_list": [{"metric": metric}], "generation_kwargs": {"max_new_tokens": 64}}
        results[task] = {"alias": task}
        lines = []
        for doc_id, score in enumerate(values):
            line = {"doc_id": doc_id, "target": letter(doc_id, True), **make(doc_id, score), "doc_hash": "same"}
            line["token_counts"] = [{"input_tokens": 100, "output_tokens": tokens} if tokens else None]
            line["input"] = f"{prompt} {doc_id}"
            if response is not None:
                line["resps"] = [response]
            lines.append(json.dumps(line))
        (inner / f"{date}_samples_{task}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    content = {
        "results": results,
        "configs": configs,
        "group_subtasks": {name: list(members) for name, members in (groups or {}).items()},
        "config": {"model": "qwen2_5_vl", "model_args": model_args, "gen_kwargs": "", "limit": None},
        "date": date,
    }
    (inner / f"{date}_results.json").write_text(json.dumps(content))
    return folder


def trace(entropy: Sequence[float], *, every: int = 2, video_tokens: int = 36, steered: bool = True) -> dict[str, Any]:
    """A trace with a due step at every ``every``-th token; α = +1 adds 0.02 nats, -1 takes 0.01 nats."""
    values = np.asarray(entropy, dtype=float)
    ema = np.zeros(len(values))
    for index, value in enumerate(values):
        ema[index] = 0.98 * (ema[index - 1] if index else 0) + 0.02 * value
    due = [steered and (index + 1) % every == 0 for index in range(len(values))]
    peak = np.maximum.accumulate(ema)
    alpha = [(-1 if low else 1) if is_due else 0 for is_due, low in zip(due, ema < peak, strict=True)]
    return {
        "tokens": [f"word{index} " for index in range(len(values))],
        "entropy": values.round(6).tolist(),
        "ema": ema.round(6).tolist(),
        "peak": peak.round(6).tolist(),
        "alpha": alpha,
        "entropy_change": [{1: 0.02, -1: -0.01, 0: None}[sign] for sign in alpha],
        "shift": (np.cumsum(due) * 0.001).round(6).tolist(),
        "grad_norm": [0.1 if is_due else None for is_due in due],
        "updates": sum(due),
        "ordinary_steps": max(len(values) - 1, 0) - sum(due),
        "due_steps": sum(due),
        "last_shift": round(sum(due) * 0.001, 6) if len(values) else None,
        "lowering": {"updates": alpha.count(-1), "entropy_change": -0.01 if -1 in alpha else None},
        "raising": {"updates": alpha.count(1), "entropy_change": 0.02 if 1 in alpha else None},
        "peak_index": int(ema.argmax()),
        "video_tokens": video_tokens,
        "note": "" if steered else "policy is off",
    }


def record(task: str, doc_id: int, **changes: Any) -> dict[str, Any]:
    """A journal line of kind ``sample``: 20 tokens, of which 6 have α = +1 and 4 have -1.

    An ordinary step takes 0.1 s, a due one 0.12 s.
    """
    rng = np.random.default_rng(doc_id)
    line = {
        "kind": "sample",
        "version": 2,
        "run": "ab" * 32,
        "key": f"{task}-{doc_id}",
        "task": task,
        "split": "test",
        "doc_id": doc_id,
        "repeat": 0,
        "prompt_digest": "digest",
        "prompt": f"Which shape moves? {doc_id}\nA. circle\nB. square\nThink first.",
        "media": [f"clips/{doc_id // 3}.mp4"],
        "thinking": "The circle rests.",
        "answer": letter(doc_id, True),
        "text": f"<think>\nThe circle rests.\n</think>\n{letter(doc_id, True)}",
        "thinking_cut": False,
        "answer_cut": doc_id % 10 == 9,
        "tokens": {"input": 120, "output": 20, "thinking": 15},
        "seconds": {"read": 0.5, "generate": 2.1, "ordinary": 0.9, "due": 1.2},
        "peak_memory_bytes": 3_000_000_000,
        "trace": trace(np.where(np.arange(20) < 12, 1 + rng.random(20), 0.01)),
        "error": None,
    }
    return line | changes


def write_journal(
    folder: Path,
    records: Iterable[Mapping[str, Any]],
    *,
    model_args: Mapping[str, Any],
    header: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> Path:
    """Writes ``folder/vreason_journal/<run>-rank<k>.jsonl`` and returns its path.

    ``header`` changes the line of kind ``run``; ``model`` is a line of that kind, where there is one.
    """
    own = {"run": "ab" * 32, "model_args": dict(model_args), "started": "2025-01-01"}
    own["method"] = {"policy": model_args.get("policy", "switch"), "update_every": 2}
    journal = Journal(folder / "vreason_journal", own | dict(header or {}), rank=rank, resume=False)
    if model is not None:
        journal.note("model", model)
    for line in records:
        trace = line["trace"] or {}
        own = {name: value for name, value in trace.items() if name not in ARRAYS}
        columns = {name: trace[name] for name in ARRAYS if name in trace}
        journal.add({**line, "trace": own if trace else None}, columns if trace else None)
    journal.close()
    return journal.path
