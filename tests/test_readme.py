"""The README's table of model arguments says what the code does."""

import re
from pathlib import Path

from lmms_eval_vreason.adapter.options import argument_names, defaults

README = Path(__file__).parents[1] / "README.md"
# Shown in words, because the default is worked out when it is needed.
IN_WORDS = {"reasoning_prompt": "ours", "journal": "beside `--output_path`"}


def shown(value):
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{'on' if value else 'off'}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_every_argument_is_in_the_table_with_its_default():
    rows = {}
    for line in README.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            names = re.findall(r"`(\w+)`", cells[0])
            values = cells[1].split(", ") if len(names) > 1 else [cells[1]]
            rows.update(zip(names, values, strict=True))
    assert set(rows) == set(argument_names())
    expected = {name: IN_WORDS.get(name, shown(value)) for name, value in defaults().items()}
    assert rows == expected
