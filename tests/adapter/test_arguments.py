"""docs/arguments.md says what the code does: its tables are made from the options."""

import runpy
from pathlib import Path

import pytest

from lmms_eval_vreason.adapter.options import GROUPS, argument_names, parse_options
from lmms_eval_vreason.cli import main
from lmms_eval_vreason.method.config import VReason

PAGE = Path(__file__).parents[2] / "docs" / "arguments.md"
MAKER = runpy.run_path(str(PAGE.with_name("make_arguments.py")))
rows, tables, attributes = MAKER["rows"], MAKER["tables"], MAKER["attributes"]


def test_the_page_holds_the_tables():
    # Made by `python docs/make_arguments.py`: paste its output over the page's tables.
    assert tables() in PAGE.read_text(encoding="utf-8")


def test_tasks_is_a_folder_with_our_groups(capsys):
    assert main(["tasks"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "vreason").is_dir()
    assert (folder / "shapes").is_dir()


def test_every_argument_is_in_one_table_with_its_description():
    listed = list(rows())
    assert sorted(row.name for row in listed) == sorted(argument_names())
    assert all(row.what.endswith(".") for row in listed)
    assert sum(row.audience == "usual" for row in listed) == 8
    defaults = parse_options({})
    for row in listed:
        groups = (defaults.model, defaults.video, defaults.thinking, defaults.run, defaults.method)
        (group,) = [group for group in groups if hasattr(group, row.name)]
        # A preset is a change of the others' defaults.
        assert row.name == "preset" or getattr(group, row.name) == row.default


@pytest.mark.parametrize("kind", [*GROUPS.values(), VReason])
def test_a_docstring_describes_the_options_that_there_are(kind):
    assert set(attributes(kind)) == set(kind.__annotations__)
