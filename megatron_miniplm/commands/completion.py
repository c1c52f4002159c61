"""Print a script that completes `miniplm` in your shell: commands, flags, and values that are limited to a few.

  source <(miniplm completion bash)                                       # in ~/.bashrc
  source <(miniplm completion zsh)                                        # in ~/.zshrc, after compinit
  miniplm completion fish > ~/.config/fish/completions/miniplm.fish       # once

The script is static, so a TAB starts no Python; print it again after an update. It knows our flags, not Megatron's.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell to complete in")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.completion import SHELLS, commands

    print(SHELLS[arguments.shell](commands()), end="")
