"""The stages of a run, each by itself: plan, schedule, batches, answers, ledger."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lmms_eval_vreason.journal.files import JournalError
from lmms_eval_vreason.journal.writer import Journal
from lmms_eval_vreason.media.media import Media, MediaError
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.method import VReason
from lmms_eval_vreason.run.answers import Answers
from lmms_eval_vreason.run.batch_size import BatchSize
from lmms_eval_vreason.run.batches import Question, batches, read
from lmms_eval_vreason.run.options import RunOptions
from lmms_eval_vreason.run.plan import make_plan, share_out
from lmms_eval_vreason.run.processes import Team
from lmms_eval_vreason.run.records import sample_key, who
from lmms_eval_vreason.run.run import Run
from lmms_eval_vreason.run.samples import GenerationSettings, Sample, Waiting

GREEDY = GenerationSettings((), {"do_sample": False})


def sample(index, settings=GREEDY, media=()):
    return Sample(index, "task", "test", index, 0, [], media, settings, f"digest {index}")


def question(index, length=0, settings=GREEDY, error=None):
    return Question(Waiting(sample(index, settings), str(index), 0, length), error=error)


def size(asked):
    return BatchSize(asked, None, torch.device("cpu"))


def indices(batch):
    return [q.waiting.sample.index for q in batch]


@pytest.fixture
def journal(tmp_path):
    """A journal in which the first of four samples is answered, the second failed, the third is of other settings."""

    def add(journal, own, settings, **more):
        journal.add({**who(own), "key": sample_key(own, settings), "trace": None, "error": None, **more})

    earlier = Journal(tmp_path, {"run": "1" * 64, "settings": {"learning_rate": 0.01}})
    add(earlier, sample(2), "other")
    now = Journal(tmp_path, {"run": "2" * 64, "settings": {"learning_rate": 0.5}})
    add(now, sample(0), "settings")
    add(now, sample(1), "settings", error={"type": "MediaError", "message": "gone"})
    return Journal(tmp_path, {"run": "2" * 64, "settings": {"learning_rate": 0.5}})


def test_a_plan_says_what_the_journal_answers_and_why_it_does_not_answer_the_rest(journal):
    unbuilt = replace(sample(4), error=ValueError("no prompt"))
    plan = make_plan([*map(sample, range(4)), unbuilt], journal, "settings", 0, "error")
    assert (list(plan.finished), [w.sample.index for w in plan.waiting]) == ([0], [1, 2, 3, 4])
    schedule = share_out(plan, Team.alone(), None)
    # An error is not sent to other processes.
    assert [w.sample.index for group in schedule.own for w in group] == [4]
    line = schedule.resume_line()
    assert line.startswith("1 of 5 answers taken from the journal, 4 to go (")
    assert "1 failed before" in line
    assert "1 were made with other settings: learning_rate=0.01" in line
    assert share_out(make_plan([sample(9)], journal, "settings", 0, "error"), Team.alone(), None).resume_line() == ""
    assert make_plan([sample(0)], None, "settings", 0, "error").finished == {}


@pytest.mark.parametrize(("remark", "oom", "resumed"), [("lite", "error", 0), ("lite", "lite", 1), ("", "error", 1)])
def test_an_answer_given_with_lite_is_resumed_only_with_lite(tmp_path, remark, oom, resumed):
    header = {"run": "1" * 64, "settings": {}}
    own = {**who(sample(0)), "key": sample_key(sample(0), "settings"), "trace": None, "error": None, "remark": remark}
    Journal(tmp_path, header).add(own)
    plan = make_plan([sample(0)], Journal(tmp_path, header), "settings", 0, oom)
    assert (len(plan.finished), len(plan.waiting)) == (resumed, 1 - resumed)
    assert sum(plan.dropped.values()) == 1 - resumed


def test_neighbours_of_other_settings_or_of_a_much_longer_prompt_are_not_batched_together():
    warm = GenerationSettings((), {"do_sample": True})
    lengths = [12_500, 310, 300, 290, 1090, 1200]
    questions = [question(i, length) for i, length in enumerate(lengths)]
    questions += [question(6, 1200, warm), question(7, error=MediaError("gone")), question(8, 1200, warm)]
    found = [indices(batch) for batch in batches(questions, size(8))]
    # 1090 is under twice 290 and 512 more; 1200 is over it.
    assert found == [[0], [1, 2, 3, 4], [5], [7], [6, 8]]
    assert [len(batch) for batch in batches([question(i) for i in range(5)], size(2))] == [2, 2, 1]


def test_a_video_that_cannot_be_read_or_a_prompt_that_cannot_be_built_is_the_fault_of_its_own_questions(tmp_path):
    missing = (Media("video", str(tmp_path / "missing.mp4")),)
    unbuilt = replace(sample(3), error=KeyError("no such column"))
    samples = [sample(0), sample(1, media=missing), sample(2), unbuilt]
    questions = list(read([Waiting(s, str(s.index)) for s in samples], Team.alone(), VideoOptions(), size(1)))
    assert [type(q.error) for q in questions] == [type(None), MediaError, type(None), KeyError]


class Model:
    """Answers all but the samples in ``fails``, and only so many at once."""

    def __init__(self, most=8, fails=(), error=ValueError):
        self.most, self.fails, self.error, self.method, self.calls = most, set(fails), error, VReason(), []

    def generate(self, samples, media, method=None):
        own = [s.index for s in samples]
        self.calls.append(own)
        if len(own) > self.most or (self.fails & set(own) and method is None):
            raise self.error("no room")
        return [SimpleNamespace(input_tokens=10 + index, of=index) for index in own]


def test_a_batch_that_fails_is_halved_down_to_the_sample_at_fault():
    model = Model(fails=[2])
    answers = Answers(model, size(4), "error")
    outcomes = list(answers.to([question(i) for i in range(4)]))
    assert model.calls == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    assert [getattr(o.completion, "of", None) for o in outcomes] == [0, 1, None, 3]
    assert isinstance(outcomes[2].error, ValueError)
    (unread,) = answers.to([question(5, error=MediaError("gone"))])
    assert isinstance(unread.error, MediaError)
    assert len(model.calls) == 5


@pytest.mark.parametrize(("oom", "answered"), [("lite", True), ("error", False)])
def test_lite_is_the_last_try_for_what_does_not_fit_alone(oom, answered):
    model = Model(fails=[0], error=torch.OutOfMemoryError)
    (outcome,) = Answers(model, size(1), oom).to([question(0)])
    assert (outcome.completion is not None, bool(outcome.remark)) == (answered, answered)
    assert len(model.calls) == 1 + answered


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ValueError("layers=99 is more than the model has"), False),
        (MediaError("a.mp4: there is no such file"), True),
        (JournalError("no room"), True),
        (SystemExit(143), True),
    ],
)
def test_the_same_command_is_advised_only_where_it_can_help(journal, error, again):
    options = SimpleNamespace(video=VideoOptions(), run=RunOptions(), thinking=SimpleNamespace(return_thinking=True))
    run = Run(Model(), options, journal, size(1), Team.alone())
    line = run.stopped(error)
    assert line.startswith(f"stopped; 0 finished samples are in {journal.folder}")
    assert ("Run the same command again" in line) == again
    assert Run(Model(), options, None, size(1), Team.alone()).stopped(error) == ""
