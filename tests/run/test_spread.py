"""Several processes share one list of samples: who answers changes nothing, nobody idles, and a fault ends them all."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from offline import write_video

from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.run.processes import PeerStopped, Team
from lmms_eval_vreason.run.samples import GenerationSettings, Sample, Waiting


def waiting(index, video, owner=0, length=0):
    media = (Media("video", video),)
    settings = GenerationSettings((), {"do_sample": False})
    return Waiting(Sample(index, "task", "test", index, 0, [], media, settings), f"{owner}/{index}", owner, length)


def work(team, groups, seconds, log, start):
    start.wait()
    for item in team.candidates(groups):
        if team.take(item):
            log.append(item)
            time.sleep(seconds)


def together(paces, groups):
    """What each of several threads, as slow as ``paces`` (seconds a sample), has taken."""
    store, logs, start = dist.HashStore(), [[] for _ in paces], threading.Barrier(len(paces))
    threads = [
        threading.Thread(target=work, args=(Team(store, rank, len(paces)), groups, pace, logs[rank], start))
        for rank, pace in enumerate(paces)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return logs


@pytest.mark.parametrize("paces", [[0.001], [0.001, 0.001], [0.001, 0.004, 0.002]])
def test_each_sample_is_taken_once(paces):
    groups = [[waiting(10 * g + i, f"{g}.mp4", owner=i % 2) for i in range(1 + g % 4)] for g in range(9)]
    taken = [item.key for log in together(paces, groups) for item in log]
    assert len(taken) == len(set(taken)) == sum(map(len, groups))


def test_alone_a_process_keeps_the_order():
    groups = [[waiting(0, "a"), waiting(2, "a")], [waiting(1, "b")]]
    (log,) = together([0], groups)
    assert [item.sample.index for item in log] == [0, 2, 1]


def test_groups_stay_together_until_there_are_none_left_to_begin():
    groups = [[waiting(10 * g + i, f"{g}.mp4") for i in range(6)] for g in range(6)]
    logs = together([0.003, 0.003], groups)
    owners = {g: {rank for rank, log in enumerate(logs) for item in log if item in groups[g]} for g in range(6)}
    assert sum(len(ranks) > 1 for ranks in owners.values()) <= 1


def test_who_is_free_helps_with_a_group_that_another_has_begun():
    fast, slow = together([0.001, 0.03], [[waiting(i, "a.mp4") for i in range(30)]])
    assert len(fast) + len(slow) == 30
    assert len(fast) > len(slow) > 0


def test_a_process_that_stops_says_why():
    store = dist.HashStore()
    first, second = Team(store, 0, 2), Team(store, 1, 2)
    assert first.take(waiting(0, "a.mp4"))
    second.stop("TooManyErrors: many")
    with pytest.raises(PeerStopped, match="process 1 has stopped: TooManyErrors: many"):
        first.take(waiting(1, "a.mp4"))


# Slow: two processes load a model each, and one is killed.
in_processes = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for seed in range(4):
        write_video(folder / f"{seed}.mp4", seed=seed, frames=6 + 4 * seed)
    command = [sys.executable, str(Path(__file__).parents[1] / "two_processes.py"), str(folder), str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def answers(run):
    return sorted(row for process in run["processes"] for row in process["answers"])


@in_processes
@pytest.mark.parametrize("name", ["one video", "many videos"])
def test_two_processes_answer_as_one_each_its_own_requests_in_order(runs, name):
    two, one = runs[name], runs[f"{name} alone"]
    assert answers(two) == answers(one)
    for rank, process in enumerate(two["processes"]):
        documents = [row[0] for row in process["answers"]]
        assert documents == list(range(rank, len(answers(one)), 2))


@in_processes
def test_two_processes_share_even_one_video(runs):
    shares = [len(samples) for samples in runs["one video"]["journals"].values()]
    assert sum(shares) == 12
    assert all(shares)


@in_processes
def test_questions_on_one_video_lie_with_one_process_and_pictures_in_memory_with_their_owner(runs):
    journals = runs["many videos"]["journals"]
    videos = [{media[0] for _, media in samples if media[0] != "(image)"} for samples in journals.values()]
    assert len(videos[0] | videos[1]) == 4
    # At the end one helps the other out.
    assert len(videos[0] & videos[1]) <= 1
    pictures = [[doc for doc, media in samples if media[0] == "(image)"] for samples in journals.values()]
    assert pictures == [[12], [13]]


@in_processes
def test_a_process_that_raises_ends_the_other(runs):
    first, second = (process["error"] for process in runs["raises"]["processes"])
    assert second == ["RuntimeError", "out of order"]
    assert first == ["PeerStopped", "process 1 has stopped: RuntimeError: out of order"]


@in_processes
def test_failed_samples_are_counted_over_all_processes(runs):
    kinds = sorted(process["error"][0] for process in runs["missing"]["processes"])
    assert kinds == ["PeerStopped", "TooManyErrors"]
    told = [process["error"][1] for process in runs["missing"]["processes"]]
    # The one that keeps the store takes it along, so that the other may hear no more than that.
    assert any("4 of 12 samples failed" in line for line in told)
    assert all("4 of 12 samples failed" in line or "is gone" in line for line in told)


@in_processes
def test_a_killed_process_leaves_the_other_to_finish_and_a_rerun_to_complete(runs):
    killed, again = runs["killed"], runs["killed, again"]
    assert killed["codes"] == [0, 9]
    kind, told = killed["processes"][0]["error"]
    assert kind == "PeerStopped"
    assert "is gone" in told
    # All but the batch that the killed process had begun.
    assert sum(map(len, killed["journals"].values())) == 11
    assert answers(again) == answers(runs["one video alone"])
