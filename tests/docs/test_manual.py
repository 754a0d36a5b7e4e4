"""The documents cannot lie: every option is in the manual, every option in the manual exists, and examples parse."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from apitrace import __version__, cli
from apitrace.options import Options

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "man/apitrace.8").read_text()
README = (ROOT / "README.md").read_text()
ROFF = re.compile(r"\\f[BIRP]|\\&")


def plain(roff: str) -> str:
    """Return manual text without its markup."""
    lines = (re.sub(r"^\.(?:B|I|BR|RB|IR|RI|BI)\s+", "", line) for line in roff.splitlines())
    return ROFF.sub("", "\n".join(lines)).replace("\\-", "-")


def section(name: str) -> str:
    """Return a section of the manual, with its markup."""
    _, _, rest = MANUAL.partition(f"\n.SH {name}\n")
    assert rest, name
    return rest.partition("\n.SH ")[0]


def options_of_the_command() -> set[str]:
    context = cli._parse.make_context("apitrace", [], resilient_parsing=True)
    parameters = [parameter for parameter in cli._parse.get_params(context) if not getattr(parameter, "hidden", False)]
    names = {name.strip() for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in names if name.startswith("-")}


def options_of_the_manual() -> set[str]:
    """Return the options in the tags of the OPTIONS section: the line after each .TP."""
    tags = re.findall(r"^\.TP\n(.+)$", section("OPTIONS"), re.MULTILINE)
    return {word for tag in tags for word in re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", plain(tag).replace('"', ""))}


def commands_in(text: str) -> list[list[str]]:
    """Return the arguments of each apitrace command of a document, up to the pipe."""
    lines = [line.strip().removeprefix("sudo ") for line in text.splitlines()]
    words = [shlex.split(line.partition(" |")[0]) for line in lines if line.startswith("apitrace ")]
    return [line[1:] for line in words]


def test_every_option_is_in_the_manual_and_every_option_in_the_manual_exists() -> None:
    assert options_of_the_manual() == options_of_the_command()


def test_the_help_text_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert {name for name in options_of_the_command() if name not in re.split(r"[\s,/]+", shown)} == set()
    assert "--hook" not in shown


def test_every_exit_status_in_the_manual_is_one_that_the_command_gives() -> None:
    statuses = {int(number) for number in re.findall(r"^\.B (\d+)$", section("EXIT STATUS"), re.MULTILINE)}
    known = {error.exit_status for error in cli.ApitraceError.__subclasses__() if error.__module__ == "apitrace.errors"}
    assert statuses == known | {0}


def test_the_manual_has_this_version() -> None:
    assert f'"apitrace {__version__}"' in MANUAL.splitlines()[0]


@pytest.mark.parametrize("words", commands_in(plain(section("EXAMPLES"))), ids=" ".join)
def test_the_examples_of_the_manual_parse(words: list[str]) -> None:
    assert isinstance(cli.parse(words), Options)


@pytest.mark.parametrize("words", commands_in(README), ids=" ".join)
def test_the_commands_of_the_readme_parse(words: list[str]) -> None:
    assert isinstance(cli.parse(words), Options)


def test_the_documents_have_examples() -> None:
    assert len(commands_in(plain(section("EXAMPLES")))) == 9
    assert len(commands_in(README)) >= 4


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+)", README)) - {"it"}
    assert targets
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_manual_is_well_formed() -> None:
    groff = shutil.which("groff")
    assert groff, "groff is not installed"
    page = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z", str(ROOT / "man/apitrace.8")], capture_output=True, text=True, check=True
    )
    assert page.stderr == ""
