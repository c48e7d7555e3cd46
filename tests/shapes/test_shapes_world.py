"""The shapes world: scenes, questions, thinking, pictures and files."""

import re
from collections import Counter
from itertools import pairwise

import decord
import numpy as np
import pytest

from lmms_eval_vreason.shapes import dataset
from lmms_eval_vreason.shapes.dataset import make_item, make_items
from lmms_eval_vreason.shapes.questions import KINDS, ask
from lmms_eval_vreason.shapes.render import FRAME, render, sampled
from lmms_eval_vreason.shapes.vocabulary import COLOURS, NUMBERS
from lmms_eval_vreason.shapes.world import RECIPES, SPLITS, cell_name, make_scene


def _items(split="validation", count=180):
    return make_items(split, count)


def test_a_scene_belongs_to_the_split_it_was_drawn_for():
    scenes = {split: {item.scene for item in _items(split)} for split in SPLITS}
    for split, drawn in scenes.items():
        assert {scene.split() for scene in drawn} == {split}
        assert not any(drawn & others for other, others in scenes.items() if other != split)


def test_items_depend_on_split_and_index_alone():
    once, again = make_item("test", 7), make_item("test", 7)
    assert once.scene == again.scene
    assert once.question == again.question
    assert np.array_equal(once.pictures, again.pictures)
    assert make_item("validation", 7).scene != once.scene


def test_options_differ_and_the_right_one_stands_anywhere():
    items = _items()
    assert all(len(set(item.question.options)) == 4 for item in items)
    letters = Counter(item.question.letter for item in items)
    assert min(letters[letter] for letter in "ABCD") > len(items) / 4 * 0.6


def test_every_kind_is_asked_and_its_answer_is_a_fact_of_the_scene():
    checks = {
        "colour": lambda scene, answer: any(thing.colour == answer for thing in scene.things),
        "shape": lambda scene, answer: any(thing.shape == answer for thing in scene.things),
        "count": lambda scene, answer: ("three", "four", "five", "six").index(answer) + 3 == len(scene.things),
        "direction": lambda scene, answer: any(thing.direction == answer for thing in scene.things),
        "moves": lambda scene, answer: [thing.colour for thing in scene.things if thing.hops] == [answer],
        "more": lambda scene, answer: max(scene.things, key=lambda thing: thing.hops).colour == answer,
        "first": lambda scene, answer: min(scene.things, key=lambda thing: thing.appears).colour == answer,
        "last": lambda scene, answer: max(scene.things, key=lambda thing: thing.appears).colour == answer,
        "disappears": lambda scene, answer: [t.colour for t in scene.things if t.cells[-1] is None] == [answer],
    }
    assert set(checks) == set(KINDS)
    for item in _items():
        question = item.question
        assert checks[question.kind](item.scene, question.options[question.answer]), (item.scene, question)


def test_a_question_without_a_single_answer_is_not_asked():
    rng = np.random.default_rng(0)
    scene = make_scene(rng, "vanish", "train")
    assert ask(scene, "direction", rng) is None
    assert ask(scene, "more", rng) is None


_CELL = "(top|middle|bottom) (left|center|right)"
_WAYS = {("left", "right"): "right", ("right", "left"): "left", ("top", "bottom"): "down", ("bottom", "top"): "up"}


def _ways(start, end):
    order = {"top": 0, "left": 0, "middle": 1, "center": 1, "bottom": 2, "right": 2}
    (row, column), (to_row, to_column) = start, end
    if row != to_row:
        return "down" if order[row] < order[to_row] else "up"
    return "right" if order[column] < order[to_column] else "left"


def _concluded(kind, text, notes):
    """The answer that the notes alone lead to."""
    asked = re.search(r"the (\w+)( object move)?\?", text)
    numbered = re.findall(r"the (\w+) \w+ (?:appears|comes|is new) at (\w+)", notes)
    moves = {found[0]: found[1:] for found in re.findall(f"the (\\w+) \\w+ \\w+ from {_CELL} to {_CELL}", notes)}
    paths = [(colour, number) for colour, number in re.findall(r"the (\w+) [^,]*? (none|one|two|three)\b", notes)]
    order = ("none", *NUMBERS)
    return {
        "colour": lambda: re.search(rf"the (\w+) {asked[1]}", notes)[1],
        "shape": lambda: re.search(rf"the {text.split()[4]} (?:object|one) (?:is|looks) a (\w+)", notes)[1],
        "count": lambda: re.findall("|".join(NUMBERS), notes)[-1],
        "direction": lambda: _ways(moves[asked[1]][:2], moves[asked[1]][2:]),
        "moves": lambda: next(iter(moves)) if len(moves) == 1 else None,
        "more": lambda: max(paths, key=lambda path: order.index(path[1]))[0],
        "first": lambda: min(numbered, key=lambda note: order.index(note[1]))[0],
        "last": lambda: max(numbered, key=lambda note: order.index(note[1]))[0],
        "disappears": lambda: re.search(r"the (\w+) \w+ (?:is gone|goes)", notes)[1],
    }[kind]()


def test_the_thinking_names_every_thing_and_its_notes_lead_to_the_answer():
    for item in _items():
        question, things = item.question, item.scene.things
        survey, notes = question.reasons[:-1].split(". ")
        assert sorted(re.findall(f"(?:{'|'.join(COLOURS)}) \\w+", survey)) == sorted(thing.name for thing in things)
        for thing in things:
            where = re.search(f"{thing.name} (?:at|in|on) (?:the )?(\\w+ \\w+)", survey)
            assert where is None or where[1] == cell_name(thing.seen[0])
        assert _concluded(question.kind, question.text, notes) == question.options[question.answer], question


def test_the_thinking_is_random_given_the_clip():
    scene = make_scene(np.random.default_rng(0), "move", "train")
    said = [ask(scene, "moves", np.random.default_rng(seed)).reasons for seed in range(20)]
    assert len(set(said)) == 20
    assert len({re.search("|".join(COLOURS), reasons)[0] for reasons in said}) == len(scene.things)


def test_unknown_names_are_refused_with_those_that_are_known():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="race"):
        make_scene(rng, "dance", "train")
    with pytest.raises(ValueError, match="disappears"):
        ask(make_scene(rng, "move", "train"), "smell", rng)


@pytest.mark.parametrize("recipe", RECIPES)
def test_pictures_change_exactly_where_things_do(recipe):
    rng = np.random.default_rng(1)
    scene = make_scene(rng, recipe, "train")
    pictures = render(scene, rng).astype(int)
    assert pictures.shape == (4, FRAME, FRAME, 3)
    cells = pictures.reshape(4, 3, 28, 3, 28, 3)
    colourful = (cells.max(axis=-1) > 120).any(axis=(2, 4))
    seen = np.zeros((4, 3, 3), dtype=bool)
    for thing in scene.things:
        for moment, cell in enumerate(thing.cells):
            if cell is not None:
                seen[(moment, *cell)] = True
    assert np.array_equal(colourful, seen)


def test_haze_spoils_the_pictures_the_more_the_thicker_it_is():
    scene = make_scene(np.random.default_rng(2), "move", "train")

    def drawn(haze):
        return render(scene, np.random.default_rng(3), haze).astype(int)

    distances = [np.abs(drawn(haze) - drawn(0.0)).mean() for haze in (0.0, 0.25, 0.5, 1.0)]
    assert distances[0] == 0
    assert all(thin + 5 < thick for thin, thick in pairwise(distances))
    assert np.array_equal(drawn(0.5), drawn(0.5))


def test_a_hazier_item_asks_the_same_of_the_same_scene():
    clear, hazy = make_item("validation", 5, haze=0.0), make_item("validation", 5, haze=1.0)
    assert (clear.scene, clear.question) == (hazy.scene, hazy.question)
    assert not np.array_equal(clear.pictures, hazy.pictures)
    assert dataset.clip_path(clear) != dataset.clip_path(hazy)
    low, high = dataset.HAZE
    assert all(low <= item.haze <= high for item in _items(count=9))


def test_a_clip_on_disk_shows_the_pictures_at_two_frames_a_second(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_VREASON_CACHE", str(tmp_path))
    items = [make_item("test", 3, haze=haze) for haze in (0.0, 0.8)]
    # The codec blurs the noise a little, too.
    for item, path, most in zip(items, dataset.make_clips(items), (6, 12), strict=True):
        assert path.is_relative_to(tmp_path)
        reader = decord.VideoReader(str(path))
        assert len(reader) / reader.get_avg_fps() == 4.0
        read = reader.get_batch(np.linspace(0, len(reader) - 1, 8).round().astype(int).tolist()).asnumpy()
        assert np.abs(read.astype(int) - sampled(item.pictures)).mean() < most
    made = path.stat().st_mtime_ns
    dataset.make_clips(items)
    assert path.stat().st_mtime_ns == made


def test_documents_carry_what_the_task_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_VREASON_CACHE", str(tmp_path))
    docs = dataset.documents("test", 3)
    assert [doc["question_id"] for doc in docs] == ["test-0", "test-1", "test-2"]
    for doc in docs:
        assert (tmp_path / doc["video"]).is_file()
        assert doc["answer"] in "ABCD"
        assert len(doc["options"]) == 4
