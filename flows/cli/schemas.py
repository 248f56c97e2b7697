"""`unmask schemas`: what other programs read and write, as JSON Schemas and an AsyncAPI document."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import StreamOption, stream_of
from flows.cli.terminal import out

app = typer.Typer()


@app.command(rich_help_panel="Data")
def schemas(
    stream: StreamOption = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the files; it is created.")] = Path("schemas"),
) -> None:
    """Write a JSON Schema for every message, and one AsyncAPI document of all topics.

    Without a stream, events and labels may have any fields, and the names of the topics are left open. A message that
    the folder has in the same format may only gain fields.

    [bold]Example[/bold]  unmask schemas --stream logins.toml --out schemas
    """
    from pipelines.operate import asyncapi

    written = asyncapi.write(stream_of(stream) if stream else None, folder)
    out.print(f"Wrote {asyncapi.DOCUMENT} and {len(written) - 1} JSON Schemas to {folder}.", soft_wrap=True)
