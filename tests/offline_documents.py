"""Documents for ``offline.build``: a few rows a dataset, in the columns that the stock tasks read."""

from collections.abc import Iterable

from lmms_eval.tasks.mvbench.utils import DATA_LIST as MVBENCH_FOLDERS

WORDS = ("circle", "square", "triangle", "star")
OPTIONS = [f"{letter}. {word}" for letter, word in zip("ABCD", WORDS, strict=True)]
VSI_KINDS = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_counting",
    "object_rel_distance",
    "object_abs_distance",
    "route_planning",
    "object_size_estimation",
    "obj_appearance_order",
    "room_size_estimation",
)
VSI_NUMERIC = {"object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation"}


def benchmarks(docs: int) -> Iterable[tuple[str, str, str, list[dict], list[str], list[str]]]:
    """Yields (repository, configuration, split, rows, a video file a row under the home, stock tasks)."""
    order = range(docs)
    rows = [_videomme(i) for i in order]
    files = [f"videomme/data/{row['videoID']}.mp4" for row in rows]
    yield "lmms-eval/Video-MME", "default", "test", rows, files, ["videomme"]

    rows = [_vsibench(i) for i in order]
    files = [f"vsibench/{row['dataset']}/{row['scene_name']}.mp4" for row in rows]
    yield "nyu-visionx/VSI-Bench", "full", "test", rows, files, ["vsibench"]

    for subtask, folder in MVBENCH_FOLDERS.items():
        rows = [_mvbench(i) for i in order]
        files = [f"mvbench_video/{folder}/{row['video']}" for row in rows]
        yield "OpenGVLab/MVBench", subtask, "train", rows, files, [f"mvbench_{subtask}"]

    for config in ("multi-choice", "yes_no", "caption_matching"):
        rows = [_tempcompass(i, config) for i in order]
        files = [f"tempcompass/videos/{row['video_id']}.mp4" for row in rows]
        task = f"tempcompass_{config.replace('-', '_')}"
        yield "lmms-eval/TempCompass", config, "test", rows, files, [task]

    rows = [_mmvu(i) for i in order]
    yield "lmms-eval/MMVU", "default", "validation", rows, [f"mmvu/{row['video_path']}" for row in rows], ["mmvu_val"]

    for config in ("Perception", "Comprehension", "Adaptation"):
        rows = [_videommmu(i, config) for i in order]
        files = [f"video_mmmu/Art/{row['id']}.mp4" for row in rows]
        yield "lmms-eval/VideoMMMU", config, "test", rows, files, [f"video_mmmu_{config.lower()}"]


def gold(index: int) -> str:
    return "BA"[index % 2]


def question(index: int) -> str:
    return f"Which shape moves to the right in part {index}?"


def _videomme(index: int) -> dict:
    return {
        "video_id": f"{index // 2:03d}",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "url": "",
        "videoID": f"clip{index // 2}",
        "question_id": f"{index // 2:03d}-{index % 2 + 1}",
        "task_type": "Action Recognition",
        "question": question(index),
        "options": OPTIONS,
        "answer": gold(index),
    }


def _vsibench(index: int) -> dict:
    kind = VSI_KINDS[index % len(VSI_KINDS)]
    numeric = kind in VSI_NUMERIC
    return {
        "id": index,
        "dataset": "arkitscenes",
        "scene_name": f"scene{index // 2}",
        "question_type": kind,
        "question": f"How many shapes are in part {index}?" if numeric else question(index),
        "ground_truth": "4" if numeric else gold(index),
        "options": None if numeric else OPTIONS,
    }


def _mvbench(index: int) -> dict:
    answer = WORDS["ABCD".index(gold(index))]
    return {"video": f"clip{index // 2}.mp4", "question": question(index), "candidates": list(WORDS), "answer": answer}


def _tempcompass(index: int, config: str) -> dict:
    row = {"video_id": f"{1000 + index // 2}", "dim": ("action", "speed", "direction", "order")[index % 4]}
    if config == "yes_no":
        return row | {"question": "Does the square move to the right?", "answer": ("yes", "no")[index % 2]}
    if config == "multi-choice":
        text, options = question(index), OPTIONS
    else:
        text, options = "Which caption fits the video better?", ["Caption A: A circle.", "Caption B: A square."]
    answer = options["AB".index(gold(index))]
    return row | {"question": "\n".join([text, *options]), "answer": answer}


def _mmvu(index: int) -> dict:
    open_ended = index % 4 == 3
    words = ["", "", "", "", ""] if open_ended else [*WORDS, "cross"]
    return {
        "id": f"validation_{index}",
        "video_path": f"videos/Chemistry/{index // 2}.mp4",
        "question_type": "open-ended" if open_ended else "multiple-choice",
        "question": "Which search is shown?" if open_ended else question(index),
        "choices": dict(zip("ABCDE", words, strict=True)),
        "answer": "depth-first search" if open_ended else gold(index),
    }


def _videommmu(index: int, config: str) -> dict:
    open_ended = config == "Adaptation" and index % 4 == 3
    return {
        "id": f"validation_Art_Theory_{index}",
        "question": "How many shapes are there?" if open_ended else question(index),
        "options": [] if open_ended else list(WORDS),
        "answer": "4" if open_ended else gold(index),
        "question_type": "open" if open_ended else "multiple-choice",
    }
