"""The installed packages: checked before a run, and printed by ``vreason env``."""

import platform
from importlib.metadata import distributions, requires, version
from importlib.util import find_spec

from loguru import logger
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from lmms_eval_vreason import __version__


def declared() -> dict[str, SpecifierSet]:
    """Each dependency, those of the extras included, with the versions that this package declares for it."""
    requirements = map(Requirement, requires("lmms-eval-vreason") or ())
    return {requirement.name: requirement.specifier for requirement in requirements}


def check_environment() -> None:
    """Checks the installed packages, before anything is loaded.

    The declared upper bounds are the newest releases that the tests have run on: a later one gets a warning.

    Raises:
        ValueError: A package is missing or older than what this one was tested with.
    """
    for package in ("decord", "av", "qwen_vl_utils", "torchvision"):
        if find_spec(package) is None:
            raise ValueError(f"the package {package} is missing: pip install {package.replace('_', '-')}")
    for name in ("transformers", "lmms-eval"):
        installed, allowed = version(name), declared()[name]
        oldest = next(bound.version for bound in allowed if bound.operator == ">=")
        if Version(installed) < Version(oldest):
            raise ValueError(f"{name} {installed} is older than {oldest}: pip install --upgrade {name}")
        if not allowed.contains(installed, prereleases=True):
            logger.warning(f"{name} {installed} is newer than what this package was tested with ({allowed})")


def environment() -> dict[str, str]:
    """Versions of this package, of Python and of every declared dependency, then the platform and the GPUs."""
    installed = {canonicalize_name(each.name): each.version for each in distributions()}
    try:
        import torch  # Takes seconds, and the command line imports this file at once.

        gpus = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())) or "none"
    except ImportError as error:
        gpus = f"unknown: {error}"
    return {
        "lmms-eval-vreason": __version__,
        "python": platform.python_version(),
        **{name: installed.get(canonicalize_name(name), "not installed") for name in sorted(declared())},
        "platform": platform.platform(),
        "gpu": gpus,
    }
