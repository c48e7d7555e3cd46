"""A run that is killed again and again: ``python killed_run.py FOLDER CHECKPOINT PROCESSES KILLS`` prints its answers.

Everything is imported once; each attempt is a fork (or one a process) that loads the model, answers all samples and
writes the answers down. SIGKILL ends all attempts but the last at a random moment after some progress.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from instances import answered, instances

from lmms_eval_vreason.adapter.model import Qwen2_5_VL_VReason

SAMPLES = 60
SETTINGS = {"max_new_tokens": 16, "do_sample": False, "until": []}
WORDS = "what moves to the left in this video and what is its colour after it has turned"


def documents(folder):
    videos = sorted(str(path) for path in folder.glob("*.mp4"))
    return [{"video": videos[i % len(videos)], "text": WORDS[: 10 + i]} for i in range(SAMPLES)]


def answer(folder, checkpoint, rank, processes, output):
    """One process' share of the run, to its end."""
    model = Qwen2_5_VL_VReason(
        pretrained=checkpoint,
        device="cpu",
        journal=str(folder / "journal"),
        max_pixels=56 * 56,
        min_pixels=784,
        max_num_frames=4,
        max_thinking_tokens=10,
        max_answer_tokens=3,
        batch_size=2,
    )
    rows = answered(model, instances(model, documents(folder), SETTINGS, rank=rank, size=processes))
    partial = output.with_suffix(".part")
    partial.write_text(json.dumps(rows))
    partial.rename(output)


def finished(folder):
    """Samples in the journal."""
    return sum(path.read_bytes().count(b'{"kind": "sample"') for path in (folder / "journal").glob("*.jsonl"))


def attempt(folder, checkpoint, processes, *, quiet):
    """Forks the processes of one attempt; their pids. What a ``quiet`` one says is dropped, for it is to be killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            if quiet:
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
            if processes > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            code = 1
            try:
                answer(folder, checkpoint, rank, processes, folder / f"answers{rank}.json")
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def main():
    folder, checkpoint, processes, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    moments = random.Random(0)
    stops = 0
    for _ in range(kills):
        done = finished(folder)
        pids = attempt(folder, checkpoint, processes, quiet=True)
        # By progress and not by the clock: a fast machine must not be through before the last kill.
        enough = done + moments.randint(1, 2 * processes)
        while finished(folder) < enough:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        stops += sum(os.waitpid(pid, 0)[1] == signal.SIGKILL for pid in pids)
    codes = [os.waitpid(pid, 0)[1] for pid in attempt(folder, checkpoint, processes, quiet=False)]
    rows = [row for rank in range(processes) for row in json.loads((folder / f"answers{rank}.json").read_text())]
    print(json.dumps({"codes": codes, "killed": stops, "answers": sorted(rows)}))


if __name__ == "__main__":
    main()
