"""`rlm completion`: the script by which a shell completes commands, options and file names."""

from __future__ import annotations

import click

from rlm.cli.command import Command

__all__ = ["command"]


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the script by which a shell completes commands, options and file names.

    \b
    Examples:
      rlm completion bash >> ~/.bashrc
      rlm completion zsh >> ~/.zshrc
      rlm completion fish > ~/.config/fish/completions/rlm.fish
    """  # noqa: D301 - the backspace is click's mark for lines that keep their breaks
    from click.shell_completion import get_completion_class

    from rlm.cli import COMPLETE_VARIABLE
    from rlm.cli import command as whole

    if (script := get_completion_class(shell)) is None:
        raise click.UsageError(f"click has no completion for {shell}")
    click.echo(script(whole, {}, "rlm", COMPLETE_VARIABLE).source())
    return 0
