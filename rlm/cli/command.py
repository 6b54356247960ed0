"""The click classes that all commands share: options in groups, defaults from files, hints for names of other tools."""

from __future__ import annotations

from typing import Any, Final

import click

__all__ = ["Command", "GroupedOption", "PathOption", "TextOrFile"]

USED_ELSEWHERE: Final = {
    "--question": "-q/--query",
    "--max-concurrency": "--max-concurrent",
    "--offline": "--client offline",
}
"""Names that a user may expect → the name of the option here."""


class GroupedOption(click.Option):
    """Option that `--help` shows under the title `group`."""

    def __init__(self, *arguments: Any, group: str = "", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group = group

    def get_help_extra(self, ctx: click.Context) -> Any:
        """Return what follows the help text, without the range: the metavar and the text say it."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class PathOption(click.Path):
    """Name of a file or folder; in a settings file, relative to the folder of that file."""


class TextOrFile(click.ParamType[str]):
    """Text, or with `@FILE` the text of a file."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; fail if the file cannot be read."""
        text = str(value)
        if not text.startswith("@"):
            return text
        try:
            with open(text[1:], encoding="utf-8") as file:  # noqa: PTH123 - a message for any name
                return file.read()
        except (OSError, UnicodeDecodeError) as error:
            self.fail(f"{text[1:]}: cannot be read: {error}", param, ctx)


class Command(click.Command):
    """Command of `rlm` whose defaults can come from the user's configuration file."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of a command line, with the defaults of the configuration file."""
        if "default_map" not in extra:
            from rlm.cli.defaults import configured

            extra["default_map"] = configured(self)
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line; an option name of other tools is answered with the name here."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (name := USED_ELSEWHERE.get(error.option_name)) is None:
                raise
            raise click.UsageError(f"there is no option {error.option_name}: use {name}", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the titles of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                groups.setdefault(getattr(parameter, "group", ""), []).append(record)
        ungrouped = groups.pop("", [])
        for title, records in [*groups.items(), ("Other" if groups else "Options", ungrouped)]:
            with formatter.section(title):
                formatter.write_dl(records)
