"""Toy clips as text, with questions that the text answers."""

import random
import re
from dataclasses import dataclass

PEOPLE = (
    *("woman", "man", "girl", "boy", "nurse", "farmer", "waiter", "painter"),
    *("dancer", "sailor", "teacher", "pilot", "cook", "guard", "clown", "singer"),
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
CLOTHES = ("coat", "shirt", "hat", "jacket", "scarf")
PLACES = ("kitchen", "park", "station", "garden", "market", "library")
ACTIONS = (
    *("opens a box", "reads a letter", "waters the flowers", "plays the guitar", "picks up a ball", "feeds a dog"),
    *("drinks a cup of tea", "takes a photo", "closes the window", "eats an apple", "paints a wall", "rides a bicycle"),
    *("lights a candle", "cleans the floor", "writes a note", "throws a stone"),
)
# A prompt of 16 to 32 frames is nearly all video. With so many moments video is four fifths of this one.
MOMENTS = 14
INSTRUCTION = "Think step by step about what happens in the video, then answer."


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
        named = re.findall(rf"\b({'|'.join(self.options)})\b", completion.lower())
        return bool(named) and named[-1] == self.answer


def questions(count: int) -> list[Question]:
    """``count`` questions, each on a clip of its own. More of them begin with the same ones."""
    return [_question(random.Random(f"clip {number}")) for number in range(count)]


def _question(draw: random.Random) -> Question:
    people, actions = draw.sample(PEOPLE, MOMENTS), draw.sample(ACTIONS, MOMENTS)
    # What is asked is among the first three.
    colours = draw.sample(COLOURS, 3) + draw.choices(COLOURS, k=MOMENTS - 3)
    wear = [f"a {person} in a {colour} {draw.choice(CLOTHES)}" for person, colour in zip(people, colours, strict=True)]
    moments = [f"{2 * i + 1} s: {one} {action}." for i, (one, action) in enumerate(zip(wear, actions, strict=True))]
    description = f"The video shows a {draw.choice(PLACES)}. " + " ".join(moments)
    who, three = draw.randrange(3), people[:3]
    asked, options, answer = draw.choice(
        [
            (f"What colour does the {people[who]} wear?", tuple(draw.sample(colours[:3], 3)), colours[who]),
            (f"Who {actions[who]}?", tuple(draw.sample(three, 3)), people[who]),
            ("Who appears first?", tuple(draw.sample(three, 3)), people[0]),
            (f"Who appears right after the {people[0]}?", tuple(draw.sample(three, 3)), people[1]),
        ]
    )
    text = f"{asked} ({', '.join(options)}) {INSTRUCTION}"
    return Question(description, text, options, answer)
