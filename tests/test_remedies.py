"""Every message that refuses input says what to do, and doing it works.

`remedies.py` tells how cases are written. This lists all messages, each with the case that follows
it:

    pytest tests/test_remedies.py -k followed_or_excused -s
"""

import functools
import inspect
import os
import re
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
import remedies_commands
import remedies_configs
import remedies_folders
import remedies_images
import remedies_prepared
import remedies_release
import remedies_runs
import remedies_schemes
import remedies_texts
import remedies_weights
from remedies import CASES, ROOT, Site, followed, sites
from remedies_not_followed import NOT_FOLLOWED

from instahide_jax import cli

__all__ = [  # imported for the cases in them
    "remedies_commands",
    "remedies_configs",
    "remedies_folders",
    "remedies_images",
    "remedies_prepared",
    "remedies_release",
    "remedies_runs",
    "remedies_schemes",
    "remedies_texts",
    "remedies_weights",
]
# A read of a checkpoint that fails leaves the reads beside it unfinished in Orbax.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_says_works(name: str) -> None:
    assert outcome(name)


def test_every_message_is_followed_or_excused() -> None:
    """Write a case for a new message, or say in `remedies_not_followed.py` why there is none."""
    known = {site: name for name in CASES for site in outcome(name)}
    for site in sites():
        print(f"{site.file}: {site.text}\n    {known.get(site) or reason(site)}")
    excused = {site for site in sites() if reason(site)}
    missing = [f'("{s.file}", "{s.text}")' for s in sites() if s not in known.keys() | excused]
    assert not missing, "without a case:\n" + "\n".join(missing)
    needless = [f'("{s.file}", "{s.text}")' for s in sites() if s in known.keys() & excused]
    assert not needless, "excused, but followed by a case:\n" + "\n".join(needless)


def test_excuses_are_of_messages_that_exist() -> None:
    for file, fragment in NOT_FOLLOWED:
        fitting = [site for site in sites() if site.file == file and fragment in site.text]
        assert len(fitting) == 1, f"{file}: {len(fitting)} messages hold {fragment!r}"


@functools.cache
def outcome(name: str) -> frozenset[Site]:
    """The messages that a case followed, in a folder of its own."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return followed(name, Path(folder))
        finally:
            os.chdir(before)


def reason(site: Site) -> str | None:
    """Why no case follows a message; None where one must."""
    for (file, fragment), why in NOT_FOLLOWED.items():
        if site.file == file and fragment in site.text:
            return why
    return None


def test_options_and_fields_that_messages_name_exist() -> None:
    import eval as eval_program
    import train

    texts = "\n".join(site.text for site in sites())
    known = set(re.findall(r'"(--[a-z-]+)"', inspect.getsource(train)))
    for arguments in (eval_program.Arguments, *(c.arguments for c in cli.COMMANDS.values())):
        known |= {f"--{field.name.replace('_', '-')}" for field in fields(arguments)}
    for script in (ROOT / "scripts").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    of_pip = {"--no-deps", "--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", texts)) <= known | of_pip
    source = "\n".join(path.read_text() for path in (ROOT / "instahide_jax").rglob("*.py"))
    for name in re.findall(r"\b([a-z_]+)=(?:True|False|None)\b", texts):
        assert re.search(rf"^    {name}: [\w| ]+ = ", source, re.MULTILINE), name
