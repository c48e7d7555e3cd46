"""The shapes world: scenes, questions, pictures and files."""

from collections import Counter

import decord
import numpy as np
import pytest

from lmms_eval_vreason.shapes import dataset
from lmms_eval_vreason.shapes.dataset import make_item, make_items
from lmms_eval_vreason.shapes.questions import KINDS, ask
from lmms_eval_vreason.shapes.render import FRAME, render, sampled
from lmms_eval_vreason.shapes.world import RECIPES, SPLITS, make_scene


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
        "count": lambda scene, answer: ("two", "three", "four", "five").index(answer) + 2 == len(scene.things),
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


def test_a_clip_on_disk_shows_the_pictures_at_two_frames_a_second(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_VREASON_CACHE", str(tmp_path))
    item = make_item("test", 3)
    (path,) = dataset.make_clips([item])
    assert path.is_relative_to(tmp_path)
    reader = decord.VideoReader(str(path))
    assert len(reader) / reader.get_avg_fps() == 4.0
    read = reader.get_batch(np.linspace(0, len(reader) - 1, 8).round().astype(int).tolist()).asnumpy()
    assert np.abs(read.astype(int) - sampled(item.pictures)).mean() < 6
    made = path.stat().st_mtime_ns
    dataset.make_clips([item])
    assert path.stat().st_mtime_ns == made


def test_documents_carry_what_the_task_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_VREASON_CACHE", str(tmp_path))
    docs = dataset.documents("test", 3)
    assert [doc["question_id"] for doc in docs] == ["test-0", "test-1", "test-2"]
    for doc in docs:
        assert (tmp_path / doc["video"]).is_file()
        assert doc["answer"] in "ABCD"
        assert len(doc["options"]) == 4
