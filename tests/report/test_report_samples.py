"""Single samples: flips, the figure of one sample, and leaderboard files."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from offline import MINIMUM_DOCS, write_video
from report_runs import record, trace, write_journal, write_run

from lmms_eval_vreason.cli import main
from lmms_eval_vreason.report.figures import save
from lmms_eval_vreason.report.flips import as_page, as_text, find_flips, summary
from lmms_eval_vreason.report.runs import read_run
from lmms_eval_vreason.report.sample_page import (
    find_sample,
    find_verdict,
    sample_figure,
    sample_page,
    sample_title,
    thumbnails,
)
from lmms_eval_vreason.report.submit import submission, write_submission


def pair(tmp_path, **tasks):
    """Two runs; each task maps to (scores of the first, scores of the second)."""
    write_run(tmp_path / "a", {task: scores[0] for task, scores in tasks.items()}, response="<think>hm</think>C")
    write_run(tmp_path / "b", {task: scores[1] for task, scores in tasks.items()}, response="<b>B</b> & more")
    return [read_run(f"{name}={tmp_path / name}") for name in "ab"]


def test_flips_are_the_questions_on_which_one_is_right(tmp_path):
    flips = find_flips(*pair(tmp_path, videomme=([1, 0, 0, 1], [1, 1, 0, 0]), vsibench=([0.2, 0.4], [0.2, 0.7])))
    assert [(flip["task"], flip["doc_id"], flip["gained"]) for flip in flips] == [
        ("vsibench", 1, True),
        ("videomme", 1, True),
        ("videomme", 3, False),
    ]
    assert summary(flips, ("a", "b")) == "3 questions differ: b is right and a wrong on 2, the other way round on 1"


def test_flips_show_both_chains_escaped(tmp_path):
    flips = find_flips(*pair(tmp_path, videomme=([0.0], [1.0])))
    text = as_text(flips)
    assert "a: wrong, answered C" in text
    assert "<think>hm</think>C" in text
    assert "<b>B</b> & more" in text
    page = as_page(flips, ("a", "b"))
    assert "&lt;b&gt;B&lt;/b&gt; &amp; more" in page
    assert "<b>B</b> & more" not in page


def test_flips_of_runs_without_common_samples(tmp_path):
    write_run(tmp_path / "a", {"videomme": [1.0]})
    write_run(tmp_path / "b", {"mmvu_val": [1.0]})
    with pytest.raises(ValueError, match="no sample in common"):
        find_flips(*(read_run(str(tmp_path / name)) for name in "ab"))


def test_flips_command(tmp_path, capsys):
    pair(tmp_path, videomme=([0.0, 0.0], [1.0, 1.0]))
    output = tmp_path / "out" / "flips"
    assert main(["flips", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--limit", "1", "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("document") == 1
    assert (tmp_path / "out" / "flips.txt").read_text().count("document") == 2
    assert (tmp_path / "out" / "flips.html").read_text().count("<h2>") == 2


@pytest.fixture
def journalled(tmp_path):
    video = write_video(tmp_path / "clip.mp4")
    unsteered = record("videomme", 0, trace=trace(np.ones(5), steered=False))
    steered = record("videomme", 1, media=[str(video)], prompt="Costs $5 or $6?\n" + "long words " * 60)
    write_journal(tmp_path, [unsteered, steered], model_args={})
    return tmp_path


def test_sample_is_found_by_name_or_as_the_first_steered(journalled):
    assert find_sample(str(journalled), [])["doc_id"] == 1
    assert find_sample(f"{journalled}#videomme/0", [])["doc_id"] == 0
    assert find_sample(str(next((journalled / "vreason_journal").iterdir())), [])["doc_id"] == 1
    assert find_sample(str(journalled / "vreason_journal"), [])["doc_id"] == 1
    with pytest.raises(ValueError, match="no traced sample videomme/7; there are 2"):
        find_sample(f"{journalled}#videomme/7", [])


def test_run_without_journal_is_a_clear_error(tmp_path):
    write_run(tmp_path, {"videomme": [1.0]})
    with pytest.raises(ValueError, match="has no vreason_journal"):
        find_sample(str(tmp_path), [])


def test_thumbnails_are_frames_of_the_video(journalled):
    frames = thumbnails(journalled / "clip.mp4", 6)
    assert len(frames) == 6
    assert frames[0].shape == (84, 112, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50  # the square has moved


class Tokens(HTMLParser):
    """Collects the text, the colour and the title of each ``span`` that has a title."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.colours, self.titles = [], [], []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.inside = tag == "span" and "title" in attrs
        if self.inside:
            self.texts.append("")
            self.colours.append(attrs.get("style"))
            self.titles.append(attrs["title"])

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


def test_page_shows_each_token_once_coloured_by_the_entropy_it_was_chosen_from(tmp_path, journalled):
    columns = {"entropy": [1.0, 2.0, None, 0.0], "entropy_change": [None, 2.0, None, None]}
    sample = find_sample(str(journalled), [])
    sample["trace"] |= trace(np.ones(4)) | columns | {"tokens": ["<b>", "a & b", "\n\n", " $5"]}
    image, _ = save(sample_figure(sample, "title"), tmp_path / "figure")
    page = sample_page(sample, sample_title(sample), image)
    shown = Tokens(page)
    assert shown.texts == sample["trace"]["tokens"]
    assert [colour and colour.split("/ ")[1] for colour in shown.colours] == ["25%)", "100%)", None, "0%)"]
    assert shown.titles[:2] == ["token 1: 1.000 nats", "token 2: 4.000 nats"]
    assert "0 to 4.00 nats" in page
    assert "Costs $5 or $6?" in page
    assert "http" not in page.replace("http-equiv", "")


def test_sample_figure_draws_the_entropy_that_tokens_were_chosen_from(journalled):
    sample = find_sample(str(journalled), [])
    figure = sample_figure(sample, "title")
    changes = np.array(sample["trace"]["entropy_change"], dtype=float)
    expected = np.array(sample["trace"]["entropy"]) + np.nan_to_num(changes)
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx(expected)
    assert figure.axes[1].get_ylabel() == "Entropy that tokens\nwere chosen from (nats)"
    figure.canvas.draw()
    titles = [text.get_window_extent() for text in figure.texts]
    assert all(extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1 for extent in titles)


def test_lost_traces_file_is_a_clear_error(journalled):
    next((journalled / "vreason_journal").glob("*.traces.jsonl")).unlink()
    with pytest.raises(ValueError, match="trace of videomme/1 is not in the traces' file"):
        find_sample(str(journalled), [])


def test_sample_figure_says_that_frames_are_gone(journalled):
    figure = sample_figure(find_sample(f"{journalled}#videomme/0", []), "title")
    assert "0.mp4 cannot be read: no such file" in figure.axes[0].texts[0].get_text()
    assert "not steered: policy is off" in figure.axes[-1].get_xlabel()


def test_plot_shows_gold_and_whether_the_answer_is_right(journalled):
    """Document 1's gold is A; it is wrong in the samples file."""
    assert find_verdict(str(journalled), {"task": "videomme", "doc_id": 1}, []) is None
    write_run(journalled, {"videomme": [1.0, 0.0]})
    places = (journalled, journalled / "vreason_journal", next((journalled / "vreason_journal").iterdir()))
    for place in places:
        sample = find_sample(str(place), [])
        verdict = find_verdict(f"{place}#videomme/1", sample, [])
        assert (verdict.gold, verdict.score) == ("A", 0.0)
    title = sample_title(sample, verdict)
    assert title == "videomme, document 1 · answer: A · gold: A · wrong"
    assert sample_figure(sample, title).get_suptitle() == title
    path = next(journalled.rglob("*_samples_videomme.jsonl"))
    again = json.loads(path.read_text().splitlines()[1])
    again["videomme_perception_score"]["score"] = 1.0
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    assert find_verdict(str(journalled), sample, []).score == 1.0
    write_run(journalled, {"videomme": [1.0, 1.0]}, date="20250109_000000", model_args="pretrained=tiny,seed=1")
    notices = []
    assert find_verdict(str(journalled), sample, notices) is None
    assert "different model arguments" in notices[0]


def test_plot_command(journalled, capsys):
    assert main(["plot", str(journalled), "--output", str(journalled / "figure")]) == 0
    assert (journalled / "figure.png").stat().st_size > 10_000
    assert "<svg" in (journalled / "figure.svg").read_text()
    assert "$5" in (journalled / "figure.html").read_text()


def documents(config):
    """The dataset behind the synthetic Video-MME run: two videos of three questions."""
    return [
        {
            "video_id": f"{i // 3:03d}",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "question_id": f"{i // 3:03d}-{i % 3 + 1}",
            "task_type": "Counting Problem",
            "question": "How many?",
            "options": ["A. 1.", "B. 2."],
            "answer": "B",
            "dim": "action",
        }
        for i in range(6)
    ]


def test_videomme_form(tmp_path):
    write_run(tmp_path, {"videomme": [1, 0, 1, 1, 1, 1]}, response="<think>so</think>\nB")
    contents, notices = submission("Video-MME", str(tmp_path), documents=documents)
    (path,) = write_submission(contents, tmp_path / "out")
    videos = json.loads(path.read_text())
    assert [len(video["questions"]) for video in videos] == [3, 3]
    assert set(videos[0]) == {"video_id", "duration", "domain", "sub_category", "questions"}
    question = videos[0]["questions"][1]
    assert set(question) == {"question_id", "task_type", "question", "options", "answer", "response"}
    assert (question["question_id"], question["response"]) == ("000-2", "C")
    assert notices == []
    chain, _ = submission("videomme", str(tmp_path), chain=True, documents=documents)
    assert chain["videomme.json"][0]["questions"][0]["response"] == "<think>so</think>\nB"


def test_incomplete_run_is_refused_with_what_is_missing(tmp_path):
    write_run(tmp_path, {"videomme": [1, 0, 1, 1]})
    with pytest.raises(ValueError, match=r"2 of 6 questions have no answer \(doc_id 4, 5\)"):
        submission("videomme", str(tmp_path), documents=documents)


def test_tempcompass_form(tmp_path):
    write_run(tmp_path, {"tempcompass_yes_no": [1] * 6})
    contents, notices = submission("tempcompass", str(tmp_path), documents=documents)
    entry = contents["yes_no.json"]["000"]["action"][0]
    assert entry == {"question": "How many?", "answer": "B", "prediction": "yes"}
    assert "lacks multi-choice, caption_matching, captioning" in notices[0]


def test_mvbench_form_needs_all_subtasks_and_questions(tmp_path):
    write_run(tmp_path, {"mvbench_action_count": [1.0] * 50 + [0.0] * 150})
    with pytest.raises(ValueError, match="20 subtasks, the run 1: Action Count"):
        submission("mvbench", str(tmp_path))
    template = next(tmp_path.rglob("*_samples_mvbench_action_count.jsonl"))
    from lmms_eval.tasks.mvbench.utils import DATA_LIST

    for subtask in DATA_LIST:
        template.with_name(template.name.replace("action_count", subtask)).write_text(template.read_text())
    contents, _ = submission("mvbench", str(tmp_path))
    shares = contents["upload_leaderboard.json"]
    assert len(shares) == 21
    assert (shares["Fine-grained Pose"], shares["Avg"]) == (25, 25)


@pytest.mark.parametrize("benchmark", ["mmvu", "VSI-Bench", "video_mmmu", "chess"])
def test_benchmarks_without_a_form_say_so(benchmark, tmp_path):
    with pytest.raises(ValueError, match=r"form|code|none of"):
        submission(benchmark, str(tmp_path))


def test_submit_command_writes_nothing_when_the_run_is_incomplete(tmp_path, capsys):
    write_run(tmp_path, {"mvbench_action_count": [1.0] * 3})
    assert main(["submit", "mvbench", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "197 of 200 questions have no answer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.cli
def test_submit_command_reads_the_documents_from_the_cache_that_the_run_filled(offline, tmp_path):
    write_run(tmp_path, {"videomme": [1.0] * MINIMUM_DOCS})
    path = next(tmp_path.rglob("*_results.json"))
    content = json.loads(path.read_text())
    content["configs"]["videomme"] |= {"dataset_path": "lmms-eval/Video-MME", "test_split": "test"}
    path.write_text(json.dumps(content))
    command = [sys.executable, "-m", "lmms_eval_vreason.cli", "submit", "videomme", str(tmp_path)]
    subprocess.run([*command, "--output", str(tmp_path / "out")], env=offline.env, check=True)
    videos = json.loads((tmp_path / "out" / "videomme.json").read_text())
    assert sum(len(video["questions"]) for video in videos) == MINIMUM_DOCS
    assert videos[0]["questions"][0]["options"][0].startswith("A. ")
