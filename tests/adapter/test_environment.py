"""What is installed is checked before a checkpoint is looked for."""

import tomllib
from pathlib import Path

import pytest

from lmms_eval_vreason.adapter import environment


@pytest.fixture
def installed(monkeypatch):
    """Sets the version of one distribution; the warnings of the check come back."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # An editable install keeps the requirements of the day on which it was made.
    monkeypatch.setattr(environment, "requires", lambda name: project["dependencies"])

    def check(name, version):
        said = []
        monkeypatch.setattr(environment, "version", lambda asked: version if asked == name else real(asked))
        monkeypatch.setattr(environment.logger, "warning", said.append)
        environment.check_environment()
        return said

    real = environment.version
    return check


@pytest.mark.parametrize("name", ["transformers", "lmms-eval"])
def test_an_older_version_is_refused_and_a_newer_one_warned_of(installed, name):
    with pytest.raises(ValueError, match=rf"{name} 0\.1 is older than .*: pip install --upgrade {name}"):
        installed(name, "0.1")
    (line,) = installed(name, "99.0")
    assert line.startswith(f"{name} 99.0 is newer than what this package was tested with (")
    assert installed(name, _oldest(name)) == []


def _oldest(name):
    return next(bound.version for bound in environment.declared()[name] if bound.operator == ">=")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda package: None if package == "qwen_vl_utils" else True)
    with pytest.raises(ValueError, match="qwen_vl_utils is missing: pip install qwen-vl-utils"):
        environment.check_environment()
