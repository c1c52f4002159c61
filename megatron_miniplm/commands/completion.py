"""Print a script that completes `miniplm` in your shell: commands, flags, and values that are limited to a few.

  source <(miniplm completion bash)                                       # in ~/.bashrc
  source <(miniplm completion zsh)                                        # in ~/.zshrc, after compinit
  miniplm completion fish > ~/.config/fish/completions/miniplm.fish       # once

The script is static, so a TAB starts no Python; print it again after an update. It knows our flags, not Megatron's.
"""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_miniplm.commands import COMMANDS, flags_of
from megatron_miniplm.runtime.command_line import CommandParser, PlainHelp

_HELP_CHARACTERS = 70


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of a command.

    Attributes:
        name: with its dashes.
        help: one line.
        takes_value: whether the next word is its value.
        choices: all values that it takes; none where any value, such as a path, will do.
    """

    name: str
    help: str
    takes_value: bool
    choices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand of `miniplm`, its flags, and the values of its positional arguments if those are limited."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...]


def commands() -> list[Command]:
    """What there is to complete, in the order of `miniplm --help`."""
    return [_command(name) for name in COMMANDS]


def _command(name: str) -> Command:
    parser = CommandParser(f"miniplm {name}")
    for add_flags in flags_of(name):
        add_flags(parser)
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    flags = [flag for action in shown for flag in _flags(parser, action)]
    words = [str(word) for action in shown if not action.option_strings for word in action.choices or ()]
    return Command(name=name, help=COMMANDS[name][1], flags=tuple(flags), words=tuple(words))


def _flags(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[Flag]:
    text = " ".join(PlainHelp(parser.prog)._expand_help(action).split()) if action.help else ""
    text = text if len(text) <= _HELP_CHARACTERS else text[: _HELP_CHARACTERS - 3].rstrip() + "..."
    for name in action.option_strings:
        if name.startswith("--"):
            choices = tuple(map(str, action.choices or ()))
            yield Flag(name=name, help=text, takes_value=action.nargs != 0, choices=choices)


def bash(known: Sequence[Command]) -> str:
    """Flags, their choices and commands; for every other value bash completes file names."""
    values = "\n".join(
        f"        {pattern}) {f'words={shlex.quote(words)}' if words else 'return'} ;;"
        for pattern, words in _values(known).items()
    )
    flags = "\n".join(
        f"        {command.name}) flags={shlex.quote(_names(command))} words={shlex.quote(' '.join(command.words))} ;;"
        for command in known
    )
    return f"""\
# Completion of miniplm for bash. In ~/.bashrc: source <(miniplm completion bash)
_miniplm() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} flags='' words=''
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '{_top_words(known)}' -- "$word")
        return
    fi
    # bash splits --flag=value into three words
    if [[ $word == "=" ]]; then
        word=''
    elif [[ $previous == "=" ]]; then
        previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    case ${{COMP_WORDS[1]}} in
{flags}
        *) return ;;
    esac
    case ${{COMP_WORDS[1]}}:$previous in
{values}
        *) [[ $word == -* ]] && words=$flags ;;
    esac
    [[ -z $words ]] || mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -o default -F _miniplm miniplm
"""


def zsh(known: Sequence[Command]) -> str:
    """As for bash, with one line of help for each command and flag."""
    values = "\n".join(
        f"        {pattern}) {f'compadd -- {words}' if words else '_files'}; return ;;"
        for pattern, words in _values(known).items()
    )
    flags = "\n".join(f"        {command.name}) items=({_described(command.flags)}) ;;" for command in known)
    words = "\n".join(
        f"        {command.name}) compadd -- {' '.join(command.words)} ;;" for command in known if command.words
    )
    return f"""\
# Completion of miniplm for zsh. In ~/.zshrc, after compinit: source <(miniplm completion zsh)
_miniplm() {{
    local -a items
    if (( CURRENT == 2 )); then
        items=({_described(known)})
        _describe command items
        return
    fi
    case $words[2]:$words[CURRENT-1] in
{values}
    esac
    if [[ $words[CURRENT] == -* ]]; then
        case $words[2] in
{flags}
        esac
        _describe -o flag items
        return
    fi
    case $words[2] in
{words}
        *) _files ;;
    esac
}}
compdef _miniplm miniplm
"""


def fish(known: Sequence[Command]) -> str:
    """As for zsh."""
    lines = ["# Completion of miniplm for fish: miniplm completion fish > ~/.config/fish/completions/miniplm.fish"]
    for command in known:
        lines.append(
            f"complete -c miniplm -n __fish_use_subcommand -f -a {command.name} -d {_fish_quoted(command.help)}"
        )
        seen = f"complete -c miniplm -n '__fish_seen_subcommand_from {command.name}'"
        if command.words:
            lines.append(f"{seen} -f -a {_fish_quoted(' '.join(command.words))}")
        for flag in command.flags:
            value = f" -x -a {_fish_quoted(' '.join(flag.choices))}" if flag.choices else " -r" * flag.takes_value
            lines.append(f"{seen} -l {flag.name.removeprefix('--')}{value} -d {_fish_quoted(flag.help)}")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def _values(known: Sequence[Command]) -> Mapping[str, str]:
    """Pattern of `command:flag` -> its choices in one string, empty where file names are completed."""
    values = {
        f"{command.name}:{flag.name}": " ".join(flag.choices)
        for command in known
        for flag in command.flags
        if flag.choices
    }
    for command in known:
        if files := [f"{command.name}:{flag.name}" for flag in command.flags if flag.takes_value and not flag.choices]:
            values["|".join(files)] = ""
    return values


def _names(command: Command) -> str:
    return " ".join(flag.name for flag in command.flags)


def _top_words(known: Sequence[Command]) -> str:
    return " ".join([*(command.name for command in known), "--help", "--version"])


def _described(items: Sequence[Command] | Sequence[Flag]) -> str:
    """For `_describe` of zsh, in which a colon ends the name."""
    return " ".join(shlex.quote(f"{item.name}:{item.help}") for item in items)


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=list(SHELLS), help="the shell to complete in")


def run(arguments: argparse.Namespace) -> None:
    print(SHELLS[arguments.shell](commands()), end="")
