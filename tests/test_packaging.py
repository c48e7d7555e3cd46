"""What the package declares is what it needs: imports, extras, pinned versions, and the files in the wheel."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distributions,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lmms_eval_vreason import __version__
from lmms_eval_vreason.cli import EXTRAS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lmms_eval_vreason"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The extras whose distributions a room may import, beside the plain dependencies. The demo ends in a report.
EXTRAS_OF_ROOM = {
    "engines": ["vllm"],
    "report": ["report"],
    "calibrate": ["report"],
    "bench": ["bench"],
    "shapes": ["bench", "report"],
}
# What `make` installs.
INSTALLED_EXTRAS = ("dev", "report", "bench")
CONSTRAINTS = ("constraints.txt", "constraints-lowest.txt")


def declared(*extras):
    """The requirements of ``extras`` by canonical name, or without any, those of a plain install."""
    optional = PROJECT["optional-dependencies"]
    lines = [line for extra in extras for line in optional[extra]] if extras else PROJECT["dependencies"]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def imported_modules(path):
    """Top-level names of what a file imports anywhere in it, beside this package and the standard library."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"__main__", "lmms_eval_vreason"}


def source_files():
    return [*PACKAGE.rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]


def room(path):
    inside = path.relative_to(ROOT).parts
    return inside[1] if inside[0] == "lmms_eval_vreason" and len(inside) > 2 else None


def test_every_import_is_declared_for_its_room():
    distributions_of = packages_distributions()
    undeclared = []
    for path in source_files():
        allowed = declared() | (declared(*EXTRAS_OF_ROOM[room(path)]) if room(path) in EXTRAS_OF_ROOM else {})
        for module in imported_modules(path):
            owners = {canonicalize_name(name) for name in distributions_of.get(module, [module])}
            if not owners & allowed.keys():
                undeclared.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not undeclared


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_knows_the_modules_of_every_extra(extra):
    assert {canonicalize_name(module) for module in EXTRAS[extra]} == declared(extra).keys() - declared().keys()


def without(modules, *arguments):
    """The ``vreason`` command in a process in which ``modules`` cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({list(modules)!r})); "
        f"from lmms_eval_vreason.cli import main; sys.exit(main({list(arguments)!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("matplotlib", ("report", "base=runs/base", "vreason=runs/vreason"), "report"),
        ("pandas", ("plot", "runs/vreason"), "report"),
        ("statsmodels", ("flips", "runs/base", "runs/vreason"), "report"),
        ("scipy", ("submit", "videomme", "runs/base"), "report"),
        ("tabulate", ("bench", "--shape", "tiny"), "bench"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(module, command, extra):
    run = without([module], *command)
    assert run.returncode == 2
    assert run.stderr == f"vreason: {command[0]} needs {module}: pip install 'lmms-eval-vreason[{extra}]'\n"


def test_a_plain_install_lists_its_tasks_without_any_extra():
    run = without({module for modules in EXTRAS.values() for module in modules}, "tasks")
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_dir()


def test_the_environment_is_told_whatever_is_missing():
    run = without(["torch"], "env")
    assert run.returncode == 0, run.stderr
    told = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    assert told["lmms-eval-vreason"] == __version__
    assert told["torch"] == version("torch")
    assert told["transformers"] == version("transformers")
    assert told["gpu"].startswith("unknown: ")
    assert {"python", "platform", "lmms-eval"} <= told.keys()


def test_nothing_that_git_ignores_is_tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == ""


def test_the_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == __version__


def pins(name):
    """A constraints file as canonical name → version."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(distribution): pin for distribution, pin in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_are_names_and_versions_alone(name):
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9a-z.]*", line), line


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_pin_every_declared_dependency_within_its_bounds(name):
    pinned = pins(name)
    for distribution, requirement in (declared() | declared(*INSTALLED_EXTRAS)).items():
        assert requirement.specifier.contains(pinned[distribution]), f"{requirement} but {pinned[distribution]}"


def test_the_lowest_versions_are_the_lower_bounds():
    pinned = pins("constraints-lowest.txt")
    for distribution in ("torch", "transformers", "lmms-eval"):
        lower = next(bound for bound in declared()[distribution].specifier if bound.operator == ">=")
        assert pinned[distribution].startswith(lower.version)


def tree(names):
    """Canonical names of the installed distributions that ``names`` need on this machine, themselves included."""
    found, waiting = set(), list(names)
    while waiting:
        name, *extras = waiting.pop()
        if (name, *extras) in found:
            continue
        found.add((name, *extras))
        for line in requires(name) or ():
            requirement = Requirement(line)
            markers = [{"extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(map(requirement.marker.evaluate, markers)):
                waiting.append((canonicalize_name(requirement.name), *sorted(requirement.extras)))
    return {name for name, *_ in found}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_pin_the_whole_tree(name):
    pinned = pins(name)
    for heavy in ("torch", "transformers"):
        installed = Distribution.from_name(heavy).version.partition("+")[0]
        if installed != pinned[heavy]:
            pytest.skip(f"{heavy} {installed} is installed, and {name} pins {pinned[heavy]}")
    try:
        needed = tree((distribution,) for distribution in declared() | declared(*INSTALLED_EXTRAS))
    except PackageNotFoundError as missing:
        pytest.fail(f"{missing} is declared and not installed: make install")
    assert not needed - pinned.keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel installed in it, without its dependencies."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_tasks_and_nothing_else(wheel):
    """Slow: builds a wheel."""
    sources = {file.relative_to(ROOT).as_posix() for file in PACKAGE.rglob("*") if file.is_file()}
    tasks = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tasks").rglob("*") if file.is_file()}
    expected = sources | {f"lmms_eval_vreason/_{file}" for file in tasks}
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {name for name in names if ".dist-info/" not in name}
    assert files == {name for name in expected if "__pycache__" not in name}
    for needed in ("py.typed", "shapes/checkpoint/model.safetensors", "protocol/templates/cot.yaml"):
        assert f"lmms_eval_vreason/{needed}" in files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_wheel_has_its_entry_points(site):
    """Slow: builds and installs a wheel."""
    (distribution,) = distributions(path=[str(site)], name="lmms-eval-vreason")
    points = {(point.group, point.name): point.load for point in distribution.entry_points}
    groups = ("console_scripts", "lmms_eval.models", "vllm.general_plugins")
    assert points.keys() == {(group, "vreason") for group in groups}
    for load in points.values():
        assert load() is not None


@pytest.mark.slow
def test_the_installed_wheel_runs_from_its_own_files(site, tmp_path):
    """Slow: builds and installs a wheel."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, str(site / "bin" / "vreason")]
    for argument, needed in (("tasks", "vreason/cot/vreason.yaml"), ("checkpoint", "model.safetensors")):
        run = subprocess.run(
            [*command, argument], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        folder = Path(run.stdout.strip())
        assert folder.is_relative_to(site.resolve())
        assert (folder / needed).is_file()
