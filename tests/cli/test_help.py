"""What `--help` says: something of every command, argument and flag."""

from __future__ import annotations

import re

import click
import pytest

from adaptool.cli.main import group

CONTEXT = click.Context(group)
COMMANDS = group.list_commands(CONTEXT)


def command_of(name: str) -> click.Command:
    """The command of this name."""
    command = group.get_command(CONTEXT, name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_says_what_it_does(name: str) -> None:
    """In a sentence, and no two flags of a command say the same."""
    texts = {
        parameter.name: parameter.help or ""
        for parameter in command_of(name).params
        if isinstance(parameter, click.Option)
    }
    assert [flag for flag, text in texts.items() if not text.endswith(".")] == [
        flag for flag, text in texts.items() if text.endswith("?")
    ]
    assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_stands_in_the_text(name: str) -> None:
    """Where its name is one: BASE, ADAPTER, OUT."""
    command = command_of(name)
    names = [
        parameter.human_readable_name
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    spoken = [
        word for each in names for word in re.findall(r"\b[A-Z]{2,}\b", each) if "/" not in each
    ]
    assert [word for word in spoken if word not in (command.help or "")] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_value_has_a_name(name: str) -> None:
    """N, F, FILE, or the choices: never click's own word for a type."""
    for parameter in command_of(name).params:
        if not isinstance(parameter, click.Option) or parameter.is_flag:
            continue
        if not isinstance(parameter.type, click.Choice):
            assert parameter.metavar, parameter.name
