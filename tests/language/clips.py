"""Toy clips as text, with questions that the text answers."""

import random
from dataclasses import dataclass

PEOPLE = ("woman", "man", "girl", "boy", "nurse", "farmer")
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
CLOTHES = ("coat", "shirt", "hat", "jacket", "scarf")
PLACES = ("kitchen", "park", "station", "garden", "market", "library")
ACTIONS = (
    "opens a box",
    "reads a letter",
    "waters the flowers",
    "plays the guitar",
    "picks up a ball",
    "drinks a cup of tea",
    "feeds a dog",
    "takes a photo",
)
# The first asks for reasoning, as the method's own instruction does; the second leaves the text far more open.
INSTRUCTIONS = {
    "reason": "Think step by step about what happens in the video, then answer.",
    "story": "Tell the story of the video, then answer and say why.",
}


@dataclass(frozen=True)
class Question:
    """One question on one clip.

    Attributes:
        description: The clip.
        text: The question with its options.
        options: Their words, in the question's order.
        answer: The right one.
    """

    description: str
    text: str
    options: tuple[str, ...]
    answer: str

    def is_right(self, completion: str) -> bool:
        """Whether the option that the completion names last is the right one."""
        places = {option: completion.lower().rfind(option) for option in self.options}
        last = max(places, key=lambda option: places[option])
        return places[last] >= 0 and last == self.answer


def questions(count: int, instruction: str = "reason") -> list[Question]:
    """``count`` questions, each on a clip of its own. More of them begin with the same ones."""
    return [_question(random.Random(f"clip {number}"), INSTRUCTIONS[instruction]) for number in range(count)]


def _question(draw: random.Random, instruction: str) -> Question:
    people, colours = draw.sample(PEOPLE, 3), draw.sample(COLOURS, 3)
    actions, place = draw.sample(ACTIONS, 3), draw.choice(PLACES)
    wear = [f"a {person} in a {colour} {draw.choice(CLOTHES)}" for person, colour in zip(people, colours, strict=True)]
    moments = [f"{2 * i + 1} s: {one} {action}." for i, (one, action) in enumerate(zip(wear, actions, strict=True))]
    description = f"The video shows a {place}. " + " ".join(moments)
    who = draw.randrange(3)
    asked, options, answer = draw.choice(
        [
            (f"What colour does the {people[who]} wear?", tuple(draw.sample(colours, 3)), colours[who]),
            (f"Who {actions[who]}?", tuple(draw.sample(people, 3)), people[who]),
            ("Who appears first?", tuple(draw.sample(people, 3)), people[0]),
            ("Who appears last?", tuple(draw.sample(people, 3)), people[2]),
        ]
    )
    text = f"{asked} ({', '.join(options)}) {instruction}"
    return Question(description, text, options, answer)
