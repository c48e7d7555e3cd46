"""Documents of further stock video tasks, for ``offline.build``: rows in the columns that these tasks read."""

from collections.abc import Iterable

from offline_documents import OPTIONS, WORDS, gold, question

SUBTITLES = "1\n00:00:00,000 --> 00:00:01,000\na square enters\n\n2\n00:00:02,000 --> 00:00:03,000\nit leaves\n"


def further_benchmarks(docs: int) -> Iterable[tuple[str, str, str, list[dict], list[str], list[str]]]:
    """Yields (repository, configuration, split, rows, a video file a row under the home, stock tasks)."""
    order = range(docs)
    rows = [_egoschema(i) for i in order]
    files = [f"egoschema/videos/{row['video_idx']}.mp4" for row in rows]
    yield "lmms-eval/egoschema", "Subset", "test", rows, files, ["egoschema_subset"]

    rows = [_perceptiontest(i) for i in order]
    files = [f"perceptiontest_val/videos/{row['video_name']}.mp4" for row in rows]
    yield "lmms-eval/PerceptionTest_Val", "mc_question_val", "validation", rows, files, ["perceptiontest_val_mc"]

    rows = [_mlvu(i) for i in order]
    yield "sy1998/MLVU_dev", "default", "test", rows, [f"mlvu/{row['video_name']}" for row in rows], ["mlvu_dev"]

    rows = [_longvideobench(i) for i in order]
    files = [f"datasets/longvideobench/videos/{row['video_path']}" for row in rows]
    yield "longvideobench/LongVideoBench", "default", "validation", rows, files, ["longvideobench_val_v"]

    rows = [_videomathqa(i) for i in order]
    files = [f"videomathqa/videos/{row['videoID']}.mp4" for row in rows]
    tasks = ["videomathqa_mcq", "videomathqa_mcq_w_subtitles"]
    yield "MBZUAI/VideoMathQA", "mcq", "test", rows, files, tasks
    rows = [row | {"options": OPTIONS[:2]} for row in rows]
    yield "MBZUAI/VideoMathQA", "multi_binary", "test", rows, files, ["videomathqa_mbin"]

    rows = [_lvbench(i) for i in order]
    yield "lmms-eval/LVBench", "default", "train", rows, [f"lvbench/{row['video_path']}" for row in rows], ["lvbench"]

    rows = [_tvbench(i) for i in order]
    files = [f"tvbench/video/action_antonym/{row['video']}" for row in rows]
    yield "FunAILab/TVBench", "action_antonym", "train", rows, files, ["tvbench_action_antonym"]

    rows = [_mmsi_video(i) for i in order]
    files = [f"mmsi_video/videos/{row['video_list'][0]['path']}" for row in rows]
    yield "oscarqjh/MMSI-Video-Bench_lmmseval", "default", "test", rows, files, ["mmsi_video"]


def _egoschema(index: int) -> dict:
    options = [*OPTIONS, "E. cross"]
    video = f"clip{index // 2}"
    return {"video_idx": video, "question": question(index), "option": options, "answer": str("AB".index(gold(index)))}


def _perceptiontest(index: int) -> dict:
    return {
        "video_name": f"clip{index // 2}",
        "question": question(index),
        "question_id": str(index),
        "options": list(WORDS[:3]),
        "answer_id": str("AB".index(gold(index))),
    }


def _mlvu(index: int) -> dict:
    return {
        "video_name": f"clip{index // 2}.mp4",
        "question": "\n".join([question(index), *(f"({option[0]}) {option[3:]}" for option in OPTIONS)]),
        "task_type": ("count", "ego", "order", "needle")[index % 4],
        "answer": gold(index),
    }


def _longvideobench(index: int) -> dict:
    options = {f"option{number}": word for number, word in enumerate([*WORDS, "N/A"])}
    return options | {
        "id": str(index),
        "video_path": f"clip{index // 2}.mp4",
        "question": question(index),
        "correct_choice": "AB".index(gold(index)),
        "duration_group": 15,
        "question_category": "S2E",
    }


def _videomathqa(index: int) -> dict:
    return {
        "videoID": f"clip{index // 2}",
        "question_id": str(index),
        "question": question(index),
        "options": [*OPTIONS, "E. cross"],
        "answer": gold(index),
        "category": "Counting",
        "length": "short",
    }


def _lvbench(index: int) -> dict:
    answer = gold(index)
    return {
        "video_path": f"clip{index // 2}.mp4",
        "question": question(index),
        "options": list(WORDS),
        "answer": answer,
    }


def _tvbench(index: int) -> dict:
    answer = WORDS["ABCD".index(gold(index))]
    return {"video": f"clip{index // 2}.mp4", "question": question(index), "candidates": list(WORDS), "answer": answer}


def _mmsi_video(index: int) -> dict:
    """Two mentions of one video around the question's text, as the task interleaves them."""
    return {
        "system_prompt": "You see a room.",
        "task_prompt": "First <video> and again <video>.\n",
        "user_prompt": "\n".join([question(index), *OPTIONS]),
        "format_prompt": "\nAnswer with the option's letter.",
        "video_list": [{"path": f"clip{index // 2}.mp4"}] * 2,
        "ref_images": [],
        "type": "Planning",
        "ground_truth": gold(index),
    }
