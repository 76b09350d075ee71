"""Commands: groups of options, and help that a newcomer can use."""

import shlex
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import typer
from typer.main import get_command

from sctok.cli.app import app
from sctok.cli.shared.command import command, mount


@dataclass(frozen=True)
class Groceries:
    """A group with a required option and one with a default."""

    panel: ClassVar[str] = "What to buy"
    fruit: Annotated[list[str], typer.Option(help="Kinds of fruit.")]
    bags: Annotated[int, typer.Option(help="Number of bags.", min=1)] = 2


@pytest.fixture
def shop():
    """Return a function that runs a command with a group, and what the command got."""
    taken = []

    @command("shop market --fruit apple")
    def buy(place: str, groceries: Groceries, quick: Annotated[bool, typer.Option("--quick")] = False) -> None:
        """Buy
        groceries.
        """
        taken.append((place, groceries, quick))

    program = typer.Typer(add_completion=False)
    mount(program, buy)

    def run(*arguments):
        code = program(list(arguments), standalone_mode=False)
        return code, taken

    return run


def test_a_group_gets_its_options(shop):
    _, taken = shop("market", "--fruit", "apple", "--fruit", "fig", "--quick")
    assert taken == [("market", Groceries(["apple", "fig"], 2), True)]


def test_options_of_a_group_are_checked(shop):
    with pytest.raises(typer.BadParameter.mro()[2], match="fruit"):
        shop("market")
    with pytest.raises(typer.BadParameter.mro()[2], match="1"):
        shop("market", "--fruit", "apple", "--bags", "0")


def test_help_shows_the_group_and_the_example(shop, capsys):
    shop("--help")
    shown = capsys.readouterr().out
    assert "What to buy" in shown
    assert "Buy groceries." in shown
    assert shown.rstrip().endswith("shop market --fruit apple")


def commands():
    """Return every command of sctok with its words, such as `pretrain vae`."""
    found = {}
    for name, each in get_command(app).commands.items():
        inner = getattr(each, "commands", None)
        found |= {f"{name} {part}": part_of for part, part_of in inner.items()} if inner else {name: each}
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_is_explained(name):
    """A help text is a phrase that ends with a full stop, and every example names existing options."""
    each = commands()[name]
    options = {option for parameter in each.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for parameter in each.params:
        if parameter.name != "help":
            assert parameter.help, f"{parameter.name} has no help"
            assert parameter.help.endswith("."), f"{parameter.name}: {parameter.help}"
    title, *examples = each.epilog.removeprefix("\b\n").splitlines()
    assert title in ("Example:", "Examples:")
    for example in examples:
        words = shlex.split(example)
        assert words[: 1 + len(name.split())] == ["sctok", *name.split()]
        assert {word for word in words if word.startswith("--")} <= options
