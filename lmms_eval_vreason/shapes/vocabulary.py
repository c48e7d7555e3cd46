"""The words of the shapes world, and the byte-level tokenizer that is made from them."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Qwen2.5-VL's, in its order.
_SPECIAL_NAMES = """
endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start vision_end
vision_pad image_pad video_pad
"""
SPECIAL_TOKENS = tuple(f"<|{name}|>" for name in _SPECIAL_NAMES.split())
LETTERS = ("A", "B", "C", "D")
# One token each, and ordinary text: decoding with ``skip_special_tokens`` keeps them. An option's mark is one token,
# line break and all, so that it stands right beside the options' words, where a model of few layers finds it.
TAG_TOKENS = ("<think>", "</think>", "<answer>", "</answer>", *(f"\n{letter}." for letter in LETTERS))

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
DIRECTIONS = ("left", "right", "up", "down")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")

_OTHER_WORDS = """
You are a helpful assistant system user Which Where What How Describe way does do did the of is was at in to from and or
it its an on by with for color colour shape object objects clip video move moves moved moving hop hops appear appears
appeared disappear disappears disappeared first last end start begin stay stays still gone come comes go goes new old
many more most than other all only there that this these one both then so now when while before after next here see look
looks count total step times time moment moments again never always same different Think think thinking inside tags give
answer Answer letter option options right wrong not no yes none nothing The It So I Then At Let me us First Now After In
There They every each as are were has have which who where what how question Picture Video full frame scene
"""


def words() -> list[str]:
    """Every word of the shapes world, in a fixed order; each becomes one token with and without a space before it."""
    listed = [*COLOURS, *SHAPES, *DIRECTIONS, *ROWS, *COLUMNS, *NUMBERS, *LETTERS, *_OTHER_WORDS.split()]
    return list(dict.fromkeys(listed))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about a thousand tokens that can encode any text.

    The merges come from :func:`words`, so a word of the shapes world is one token and any other text falls back to
    pieces and bytes. End of turn is ``<|im_end|>``, padding ``<|endoftext|>``, on the left, as for Qwen2.5-VL.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # an upper bound: the merges of the words end far below it
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text for word in words() for text in (word, f" {word}")], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        padding_side="left",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(list(TAG_TOKENS))
    return fast
