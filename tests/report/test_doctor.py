"""The doctor: one fault a run is named first, and clean runs have no finding."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from report_runs import DATE, record, trace, write_journal, write_run

from lmms_eval_vreason.cli import main
from lmms_eval_vreason.report.doctor import evidence as evidence_module
from lmms_eval_vreason.report.doctor import settings
from lmms_eval_vreason.report.doctor.answers import is_read
from lmms_eval_vreason.report.doctor.evidence import finding_texts, same
from lmms_eval_vreason.report.doctor.examine import examine

QUESTIONS = 40
PROMPT = "Which of the four shapes moves to the right?\nA. circle\nB. square\nAnswer with the letter of one option, no."
VERSIONS = {"torch": "2.14.1", "transformers": "5.24.0", "lmms_eval": "0.7.3"}
VIDEO = {"max_num_frames": 32, "fps": None, "max_pixels": 1605632, "min_pixels": 200704}
SETTINGS = {"dtype": "bfloat16", "positions": "trained", "attn_implementation": None, "thinking": True, **VIDEO}
LOADED = {"model_type": "qwen2_5_vl", "attention": "sdpa", "dtype": "bfloat16", "repetition_penalty": 1.05}
SHOWN = {"frames": 32, "height": 364, "width": 644, "clip_frames": 900}
STRONG = {"updates": 10, "entropy": 1.0, "absolute_change": 0.05, "changed": 2}
WEAK = {"updates": 10, "entropy": 1.0, "absolute_change": 0.0001, "changed": 0}


@pytest.fixture(autouse=True)
def a_small_benchmark(monkeypatch):
    monkeypatch.setitem(settings.SIZES, "videomme", QUESTIONS)


@dataclass
class Made:
    """What a made run is of. Each test changes one thing."""

    model: str = "qwen2_5_vl_vreason"
    backend: str = "lmms_eval_vreason.adapter.model.Qwen2_5_VL_VReason (chat)"
    args: dict = field(default_factory=lambda: {"pretrained": "Qwen/Qwen2.5-VL-7B-Instruct"})
    config: dict = field(default_factory=dict)  # over the results file's
    task: dict = field(default_factory=dict)  # over the task's configuration
    results: dict = field(default_factory=dict)
    samples: dict = field(default_factory=dict)  # doc_id → changes of its line
    records: dict = field(default_factory=dict)  # doc_id → changes of its journal line
    settings: dict = field(default_factory=dict)
    loaded: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    journal: bool = True
    absent: int = 0


STOCK = {
    "model": "qwen2_5_vl",
    "backend": "lmms_eval.models.chat.qwen2_5_vl.Qwen2_5_VL (chat)",
    "journal": False,
}


def write(folder, made):
    """Writes the run and returns its folder."""
    given = ",".join(f"{name}={value}" for name, value in made.args.items())
    scores = [1.0] * (QUESTIONS - made.absent)
    write_run(folder, {"videomme": scores}, model_args=given, tokens=1 if not made.journal else 20)
    path = folder / "tiny" / f"{DATE}_samples_videomme.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line | {"input": PROMPT} | made.samples.get(line["doc_id"], {}) for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "tiny" / f"{DATE}_results.json"
    results = json.loads(path.read_text())
    results["config"] |= {"model": made.model, "model_backend": made.backend, "batch_size": "1", **made.config}
    generation = {"max_new_tokens": 16, "temperature": 0.0, "do_sample": False, "until": ["\n\n"]}
    own = {"generation_kwargs": generation, "lmms_eval_specific_kwargs": {"default": {}, "gpt4v": {}}}
    results["configs"]["videomme"] |= own | made.task
    results["n-samples"] = {"videomme": {"original": QUESTIONS, "effective": QUESTIONS}}
    path.write_text(json.dumps(results | made.results))
    if made.journal:
        journal_of(folder, made, range(QUESTIONS - made.absent))
    return folder


def sample(doc_id, changes):
    own = {"prompt": f"{PROMPT}\nThink first.", "shown": [SHOWN], "remark": "", "answer_cut": False}
    steered = record("videomme", doc_id)["trace"] | {"refreshed": STRONG}
    return record("videomme", doc_id, **own | {"trace": steered} | changes)


def journal_of(folder, made, documents, **more):
    versions = VERSIONS | made.versions
    header = {"settings": SETTINGS | made.settings, "versions": versions, "package": "0.1.0", "device": "cuda:0"}
    lines = [sample(doc_id, made.records.get(doc_id, {})) for doc_id in documents]
    args = {"batch_size": "1", **made.args}
    write_journal(folder, lines, model_args=args, model=LOADED | made.loaded, header=header, **more)


def some(count, **changes):
    """The same changes for the first documents."""
    return dict.fromkeys(range(count), changes)


NOTHING = {"trace": trace([1.0] * 20, steered=False) | {"note": "no video tokens"}}
FEEBLE = {"trace": trace([1.0] * 20) | {"refreshed": WEAK}}
ERROR = {"error": {"type": "MediaError", "message": "a.mp4: cannot be decoded"}, "trace": None, "shown": []}
CHAIN = {"filtered_resps": "The square looks red, so I would say that circle and square differ"}
TAGGED = {"filtered_resps": "<answer>B</answer>"}
SPOILED = {
    "nothing steered": ("steering", {"records": some(QUESTIONS, **NOTHING)}),
    "hardly steered": ("steering", {"records": some(QUESTIONS, **FEEBLE)}),
    "failed": ("failed", {"records": some(4, **ERROR)}),
    "thinking cut": ("cut", {"records": some(4, thinking_cut=True)}),
    "unread": ("unread", {"samples": some(4, **CHAIN)}),
    "empty": ("unread", {"samples": some(4, filtered_resps="")}),
    "truncated": ("truncated", {"records": some(4, prompt=PROMPT[:70])}),
    "no video": ("no video", {"records": some(4, media=[], shown=[])}),
    "broken videos": ("few frames", {"records": some(4, shown=[SHOWN | {"frames": 2, "clip_frames": 2}])}),
    "lite": ("lite", {"records": some(4, remark="out of memory: answered with prune_ratio=0.5")}),
    "absent": ("missing", {"absent": 4}),
    "positions": ("positions", {"settings": {"positions": "transformers 5.24.0"}}),
    "frames": ("frames", {"args": {"max_num_frames": "8"}, "settings": {"max_num_frames": 8}}),
    "pixels": ("pixels", {"args": {"max_pixels": "50176", "min_pixels": "50176"}, "settings": {"max_pixels": 50176}}),
    "own prompt": ("prompt", {"args": {"reasoning_prompt": "Be brief."}}),
    "template": ("template", {"task": {"metadata": {"template": "mine", "template_digest": "0123456789ab"}}}),
    "gen_kwargs": ("generation", {"config": {"gen_kwargs": {"temperature": 0.7, "do_sample": True}}}),
    "penalty": ("repetition penalty", {"loaded": {"repetition_penalty": 1.3}}),
    "a name's prompt": ("prompt by name", {"task": {"lmms_eval_specific_kwargs": {"default": {}, "qwen2_5_vl": {}}}}),
    "limit": (
        "limit",
        {
            "config": {"limit": 40.0},
            "results": {"n-samples": {"videomme": {"original": 2700, "effective": 40.0}}},
        },
    ),
    "a smaller dataset": ("size", {}),
    "float16": ("precision", {"loaded": {"dtype": "float16"}}),
    "system turn": ("system turn", {"results": {"system_instruction": "Be brief."}}),
    "stock positions": ("positions", STOCK),
    "stock batch": ("batch", STOCK | {"config": {"batch_size": "4"}}),
    "stock ignores": ("unused prompt", STOCK | {"args": {"reasoning_prompt": "Think."}}),
    "stock tags": ("tags", STOCK | {"samples": some(4, **TAGGED)}),
    "stock cut": ("cut", STOCK | {"samples": some(4, token_counts=[{"output_tokens": 16}])}),
    "stock simple": ("simple class", STOCK | {"backend": "lmms_eval.models.simple.qwen2_5_vl.Qwen2_5_VL (simple)"}),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_the_fault_of_a_spoiled_run_is_named_first(fault, tmp_path, monkeypatch, capsys):
    name, changes = SPOILED[fault]
    if fault in ("a smaller dataset", "limit"):
        monkeypatch.setitem(settings.SIZES, "videomme", 2700)
    run = str(write(tmp_path / "run", Made(**changes)))
    # A stock run does not record transformers, whose positions are its only other fault.
    told = ["--transformers", "4.57.1" if name != "positions" else "5.24.0"] if "stock" in fault else []
    diagnosis = examine(run, *told[1:])
    assert [finding.name for finding in diagnosis.findings] == [name]
    (finding,) = diagnosis.findings
    assert finding.spoils
    assert 0 < finding.touched <= 1
    assert finding.evidence
    assert main(["doctor", run, *told]) == 1
    page = capsys.readouterr().out
    assert f"\n1. {name}: " in page
    assert page.count("Mend: ") == 1
    assert finding.mend.split()[0] in page


def on(folder):
    return write(folder, Made())


def off(folder):
    made = Made(args={"pretrained": "Qwen/Qwen2.5-VL-7B-Instruct", "policy": "off"})
    made.records = some(QUESTIONS, trace=trace([1.0] * 20, steered=False))
    return write(folder, made)


def stock(folder):
    """On a family whose positions transformers has right."""
    backend = "lmms_eval.models.chat.qwen3_vl.Qwen3_VL (chat)"
    made = Made("qwen3_vl", backend, {"pretrained": "Qwen/Qwen3-VL-8B-Instruct"}, journal=False)
    return write(folder, made)


def several_processes(folder):
    made = Made(journal=False)
    write(folder, made)
    journal_of(folder, made, range(0, QUESTIONS, 2))
    journal_of(folder, made, range(1, QUESTIONS, 2), rank=1)
    path = folder / "vreason_journal" / f"{('ab' * 32)[:12]}-rank1.jsonl"
    path.write_text(path.read_text().replace('"cuda:0"', '"cuda:1"'))
    return folder


def resumed(folder):
    """Killed once: a start more, and samples that had failed before."""
    made = Made(journal=False, records=some(5, **ERROR))
    write(folder, made)
    journal_of(folder, made, range(20))
    made.records = {}
    journal_of(folder, made, [*range(5), *range(20, QUESTIONS)])
    return folder


def tried_again_by_another_process(folder):
    """Its failure stands in a file that is read after the one with its answer."""
    made = Made(journal=False)
    write(folder, made)
    journal_of(folder, made, range(QUESTIONS))
    made.records = some(5, **ERROR)
    journal_of(folder, made, range(5), rank=1)
    return folder


@pytest.mark.parametrize("make", [tried_again_by_another_process, on, off, stock, several_processes, resumed])
def test_a_clean_run_has_no_finding(make, tmp_path, capsys):
    run = str(make(tmp_path / "run"))
    assert main(["doctor", run]) == 0
    page = capsys.readouterr().out
    assert "nothing found that would make its numbers differ" in page
    assert "Mend" not in page
    diagnosis = examine(run)
    assert diagnosis.notices == []
    assert "failed" not in diagnosis.facts["method"]
    assert ("versions" in diagnosis.unknown) == (make is stock)
    assert ("frames shown" in diagnosis.facts) == (make is not stock)


def test_starts_in_two_environments_are_mixed(tmp_path):
    made = Made()
    run = write(tmp_path, made)
    made.versions = {"transformers": "5.17.0"}
    journal_of(run, made, [0])
    (finding,) = examine(str(run)).findings
    assert finding.name == "mixed"
    assert finding.evidence == ["transformers: 5.17.0, 5.24.0"]


def test_an_earlier_start_with_other_settings_is_another_run(tmp_path):
    """The same arguments under another version of the package: its samples were made again."""
    run = write(tmp_path, Made())
    older = {"run": "cd" * 32, "started": "2024-01-01", "versions": {"transformers": "5.17.0"}}
    write_journal(run, [sample(0, ERROR)], model_args=Made().args, header=older)
    diagnosis = examine(str(run))
    assert diagnosis.findings == []
    assert "40 of 40 samples steered" in diagnosis.facts["method"]


def test_without_transformers_told_the_installed_one_is_said_to_be_assumed(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_module, "version", lambda name: "5.24.0")
    run = str(write(tmp_path, Made(**STOCK)))
    (finding,) = examine(run).findings
    assert "does not record its own" in finding.evidence[0]
    assert "--transformers" in finding.mend
    assert [f.name for f in examine(run, "5.3.0").findings] == ["positions"]
    assert examine(run, "5.2.9").findings == []


@pytest.mark.parametrize("model", ["vllm", "qwen3_vl_vreason", "llava_hf"])
def test_other_engines_and_families_have_their_own_positions(model, tmp_path):
    pretrained = "Qwen/Qwen2.5-VL-7B-Instruct" if model == "vllm" else "other"
    assert (
        examine(str(write(tmp_path, Made(**STOCK | {"model": model, "args": {"pretrained": pretrained}})))).findings
        == []
    )


PRESET = {"max_num_frames": 16, "max_pixels": 256 * 28 * 28, "max_thinking_tokens": 960, "thinking": True}


def test_with_a_preset_all_that_it_sets_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_module, "expected", lambda name: PRESET if name == "paper" else {})
    args = {"pretrained": "x", "preset": "paper"}
    clean = {**PRESET, "min_pixels": 128 * 28 * 28}
    seen = [{"frames": 16, "height": 336, "width": 588, "clip_frames": 900}]
    run = str(write(tmp_path / "clean", Made(args=args, settings=clean, records=some(QUESTIONS, shown=seen))))
    assert examine(run).findings == []
    assert examine(run).facts["compared with"] == "preset=paper"
    changed = {**clean, "max_num_frames": 32, "max_thinking_tokens": 1024}
    run = str(write(tmp_path / "changed", Made(args=args, settings=changed, records=some(QUESTIONS, shown=seen))))
    found = {finding.name: finding.evidence for finding in examine(run).findings}
    assert found == {
        "frames": ["max_num_frames=32, preset=paper is 16"],
        "budgets": ["max_thinking_tokens=1024, preset=paper is 960"],
    }


@pytest.mark.parametrize(
    ("wanted", "group"),
    [
        ({"temperature": 0.01}, "sampling"),
        ({"repetition_penalty": 1.0}, "sampling"),
        ({"dtype": "float32"}, "precision"),
        ({"thinking": "off"}, "prompt"),
        ({"prune_ratio": 0.5}, "settings"),
    ],
)
def test_a_preset_may_set_anything(wanted, group, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_module, "expected", lambda name: wanted)
    made = Made(args={"pretrained": "x", "preset": "paper"}, settings={"prune_ratio": 0.0})
    (finding,) = examine(str(write(tmp_path, made))).findings
    assert finding.name == group
    (name,) = wanted
    assert finding.evidence[0].startswith(f"{name}=")


def test_frames_larger_than_the_preset_s_are_found_though_the_setting_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_module, "expected", lambda name: PRESET)
    seen = [SHOWN | {"frames": 16}]
    run = write(tmp_path, Made(args={"preset": "paper"}, settings=PRESET, records=some(QUESTIONS, shown=seen)))
    (finding,) = examine(str(run)).findings
    assert finding.name == "size of frames"
    assert "234416 to 234416" in finding.evidence[0]


def test_the_names_of_the_method_s_strengths_are_no_presets_of_a_protocol(tmp_path):
    args = {"pretrained": "x", "preset": "strong"}
    assert examine(str(write(tmp_path, Made(args=args)))).facts["compared with"].startswith("lmms-eval's defaults")


def test_frames_that_a_checkpoint_brings_along_are_its_own(tmp_path):
    assert examine(str(write(tmp_path, Made(settings={"max_num_frames": 8, "fps": 2.0})))).findings == []


def test_findings_are_ranked_by_what_they_touch_and_minor_ones_come_last(tmp_path, capsys):
    made = Made(
        config={"use_cache": "cache"},
        settings={"positions": "transformers 5.24.0"},
        records={**some(8, thinking_cut=True), **dict.fromkeys(range(30, 32), ERROR)},
    )
    run = str(write(tmp_path, made))
    findings = examine(run).findings
    assert [finding.name for finding in findings] == ["positions", "cut", "failed", "cache"]
    assert [finding.touched for finding in findings] == [1.0, 0.2, 0.05, 1.0]
    assert main(["doctor", run, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [finding["name"] for finding in content["findings"]] == [finding.name for finding in findings]
    assert content["spoiled"]
    assert not content["findings"][-1]["spoils"]


def test_a_minor_finding_alone_is_shown_and_does_not_fail(tmp_path, capsys):
    assert main(["doctor", str(write(tmp_path, Made(config={"use_cache": "cache"})))]) == 0
    assert "1. cache (minor): " in capsys.readouterr().out


def test_a_lost_sample_counts_once(tmp_path):
    """A failed sample has no answer, and a cut one may have none: neither is unread."""
    empty = some(6, filtered_resps="")
    made = Made(samples=empty, records={**some(2, **ERROR), **{doc_id: {"answer_cut": True} for doc_id in (2, 3)}})
    found = {finding.name: finding.touched for finding in examine(str(write(tmp_path, made))).findings}
    assert found == {"failed": 0.05, "cut": 0.05, "unread": 0.05}


@pytest.mark.parametrize(
    ("text", "target", "read"),
    [
        ("B", "B", True),
        ("(A) circle", "B", True),
        ("<think>so</think><answer>B</answer>", "1", True),
        ("I see A and then B and", "B", False),
        ("E", "B", False),
    ],
)
def test_a_letter_is_read_where_the_prompt_has_options(text, target, read):
    row = {"answered": True, "task": "videomme", "response": text, "input": PROMPT, "prompt": "", "target": target}
    assert is_read(row) is read


@pytest.mark.parametrize(
    ("text", "target", "read"),
    [
        ("yes", "yes", True),
        ("maybe", "no", False),
        ("about 4 m", "4.5", True),
        ("many", "4", False),
        ("a red car", "car", True),
    ],
)
def test_other_kinds_of_answer_are_known_from_the_gold_one(text, target, read):
    row = {"answered": True, "task": "t", "response": text, "input": "How many?", "prompt": "", "target": target}
    assert is_read(row) is read


def test_settings_compare_whatever_their_type():
    assert same("off", False)
    assert same("0.010", 0.01)
    assert same("None", None)
    assert not same(32, 16)


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_what_cannot_be_read_is_code_2(path, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["doctor", str(tmp_path / path)]) == 2
    assert capsys.readouterr().err.startswith("vreason: ")


def test_a_version_that_is_none_is_said(tmp_path, capsys):
    assert main(["doctor", str(write(tmp_path, Made(**STOCK))), "--transformers", "new"]) == 2
    assert "4.57.1" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "asked"), [(0.1, 4), (-1, 40)])
def test_a_limit_may_be_a_share_or_none(limit, asked, tmp_path):
    counts = {"n-samples": {"videomme": {"original": QUESTIONS, "effective": limit}}}
    made = Made(config={"limit": limit}, results=counts, absent=QUESTIONS - asked)
    found = [finding.what for finding in examine(str(write(tmp_path, made))).findings]
    assert found == ([f"Only some of the documents were asked: {asked} of 40."] if asked < 40 else [])


def test_the_page_lists_every_finding_and_every_finding_has_a_made_run():
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    table = page.split("<!-- findings:")[1].split("| --- | --- | --- |\n")[1].split("<!-- end")[0]
    texts = finding_texts()
    rows = [
        f"| {name}{' (minor)' if 'minor' in own else ''} | {own['what']} | {own['mend']} |"
        for name, own in texts.items()
    ]
    assert table.splitlines() == rows
    # These have tests of their own.
    elsewhere = {"budgets", "sampling", "settings", "size of frames", "mixed", "cache"}
    assert {name for name, _ in SPOILED.values()} | elsewhere == set(texts)
