"""Runs of two processes: ``python two_processes.py FOLDER CHECKPOINT`` prints what became of each, as JSON.

Everything is imported once; a process of a run is a fork. FOLDER holds the videos ``0.mp4``, ``1.mp4``, ….
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from instances import answered, instances
from PIL import Image

from lmms_eval_vreason.adapter.model import Qwen2_5_VL_VReason
from lmms_eval_vreason.journal.files import latest_samples, read_records
from lmms_eval_vreason.run.generation import Generator

WORDS = "what moves to the left in this video and what is its colour after it has turned"
generate = Generator.generate


def slow(seconds):
    def run(self, samples, media, method=None):
        time.sleep(seconds)
        return generate(self, samples, media, method)

    return run


def faulty(what):
    """Answers one batch, then does ``what``."""
    done = []

    def run(self, samples, media, method=None):
        if done:
            what()
        done.append(samples)
        return generate(self, samples, media, method)

    return run


def out_of_order():
    raise RuntimeError("out of order")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def messages(doc):
    return [{"role": "user", "content": [doc["media"], {"type": "text", "text": doc["text"]}]}]


def one_video(folder):
    return [{"media": {"type": "video", "url": str(folder / "0.mp4")}, "text": WORDS[: 10 + 5 * i]} for i in range(12)]


def many_videos(folder):
    docs = []
    for number in range(4):
        video = {"type": "video", "url": str(folder / f"{number}.mp4")}
        docs += [{"media": video, "text": WORDS[: 10 + 7 * i]} for i in range(3)]
    picture = {"type": "image", "url": Image.new("RGB", (56, 56), (200, 30, 30))}
    return [*docs, {"media": picture, "text": "What colour?"}, {"media": picture, "text": "Which colour?"}]


def some_missing(folder):
    docs = many_videos(folder)[:12]
    for place in (1, 4, 6, 9):
        docs[place]["media"] = {"type": "video", "url": str(folder / "missing.mp4")}
    return docs


def answer(rank, size, docs, journal, checkpoint, arguments):
    model = Qwen2_5_VL_VReason(
        pretrained=checkpoint,
        device="cpu",
        journal=str(journal),
        min_pixels=784,
        max_pixels=56 * 56,
        max_num_frames=4,
        max_thinking_tokens=10,
        max_answer_tokens=3,
        **arguments,
    )
    settings = {"max_new_tokens": 16, "do_sample": False, "until": []}
    return answered(model, instances(model, docs, settings, messages, rank=rank, size=size))


def run(folder, checkpoint, name, docs, generates, **arguments):
    """One process for each of ``generates`` (what stands in for ``Generator.generate``); a report on each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size, started, pids = len(generates), time.monotonic(), []
    for rank, stand_in in enumerate(generates):
        pids.append(os.fork())
        if pids[-1] == 0:
            if size > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            Generator.generate = stand_in
            report = {}
            try:
                report["answers"] = answer(rank, size, docs, folder / name, checkpoint, arguments)
            except Exception as error:
                report["error"] = [type(error).__name__, str(error)]
            finally:
                (folder / f"{name}{rank}.json").write_text(json.dumps(report))
                os._exit(0)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    reports = [folder / f"{name}{rank}.json" for rank in range(size)]
    samples = {
        path.stem[-1]: [
            [r["doc_id"], r["media"]] for r in latest_samples(read_records(path)).values() if not r["error"]
        ]
        for path in sorted((folder / name).glob("*-rank?.jsonl"))
    }
    processes = [json.loads(path.read_text()) if path.exists() else {} for path in reports]
    for path in reports:
        path.unlink(missing_ok=True)
    return {"processes": processes, "codes": codes, "journals": samples, "seconds": time.monotonic() - started}


def main():
    folder, checkpoint = Path(sys.argv[1]), sys.argv[2]
    one, many = one_video(folder), many_videos(folder)
    lenient = {"on_error": "skip", "max_error_rate": 0.25}
    out = {
        "one video alone": run(folder, checkpoint, "one-alone", one, [generate]),
        "one video": run(folder, checkpoint, "one", one, [generate, slow(0.3)], batch_size=2),
        "many videos alone": run(folder, checkpoint, "many-alone", many, [generate]),
        "many videos": run(folder, checkpoint, "many", many, [slow(0.1), slow(0.1)], batch_size="auto"),
        "raises": run(folder, checkpoint, "raises", one, [slow(0.1), faulty(out_of_order)], on_error="raise"),
        "missing": run(folder, checkpoint, "missing", some_missing(folder), [slow(0.05), slow(0.05)], **lenient),
        "killed": run(folder, checkpoint, "killed", one, [slow(0.1), faulty(killed)]),
        "killed, again": run(folder, checkpoint, "killed", one, [generate, generate]),
    }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
