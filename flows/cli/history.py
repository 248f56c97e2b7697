"""`unmask history`: which model was live when, who changed it and why, and whether the record of it is whole."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import StreamOption, settings, stream_of, time_ms
from flows.cli.terminal import out
from flows.screen import clean, json_line
from pipelines.errors import UnmaskError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flows.settings import Settings
    from pipelines.contracts.stream import Stream
    from pipelines.operate.history import Entry, History

app = typer.Typer()
DEFAULT_LAST = 20
_SHORT = 12  # characters of a digest


@app.command(rich_help_panel="Live scoring")
def history(
    stream: StreamOption = None,
    at: Annotated[
        str | None, typer.Option(help="Which model was wanted at this time, and which scored: 2026-11-30T12:00Z.")
    ] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many of the newest to show.")] = DEFAULT_LAST,
    every: Annotated[bool, typer.Option("--all", help="Show every order, not only moves of models.")] = False,
    verify: Annotated[
        str | None, typer.Option(metavar="HASH", help="Check that the record still leads back to this former head.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show the moves of the champion: when, who, from which model to which, and why; or what was live at a time.

    Each record names the hash of the one before. Exit code 1 if one was changed, left out or put in. Whoever may write
    to the topic can still cut off its end: keep the head's hash elsewhere, and give it to --verify later.

    [bold]Examples[/bold]

    unmask history --stream payments

    unmask history --stream payments --at 2026-11-30T12:00Z

    unmask history --stream payments --verify HASH
    """
    from pipelines.operate.history import read_history

    spec, here, at_ms = stream_of(stream), settings(), time_ms(at)
    found = read_history(here.connection(), spec)
    if at_ms is not None:
        agrees = _show_at(here, spec, found, at_ms, as_json=as_json)
        raise typer.Exit(0 if agrees and not found.chain.breaks else 1)
    entries = list(found.entries if every else found.moves)
    shown = entries[max(len(entries) - last, 0) :]
    versions = _versions(here, spec, {digest for e in shown for digest in (_from(e), e.order.digest) if digest})
    wrong = [f"offset {offset}: {why}" for offset, why in found.chain.breaks]
    if verify is not None and verify not in found.hashes:
        wrong.append(f"no record has the hash {verify}: the record was cut off after it was kept, or written anew")
    if as_json:
        for entry in shown:
            _print_json(_facts(entry, versions))
        chain = found.chain
        _print_json({"head": chain.head, "chained": chain.n_chained, "unchained": chain.n_unchained, "wrong": wrong})
    else:
        _print_table(shown, versions)
        hidden = f"; {len(entries) - len(shown):,} older ones with --last" if len(entries) > len(shown) else ""
        said = f"{len(shown):,} of {len(found.entries):,} orders shown{hidden}."
        out.print(f"{said} {_chain_words(found, wrong)}", soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(1 if wrong else 0)


def _chain_words(found: "History", wrong: "list[str]") -> str:
    chain = found.chain
    began = f" The first {chain.n_unchained:,} are of an older version, which did not chain them." * bool(
        chain.n_unchained
    )
    if wrong:
        return f"The record is BROKEN: {'; '.join(wrong)}.{began}"
    return f"The record is whole: {chain.n_chained:,} chained.{began} Head: {chain.head}"


def _show_at(here: "Settings", spec: "Stream", found: "History", at_ms: int, *, as_json: bool) -> bool:
    """What was wanted at a time and what scored; whether they agree."""
    from pipelines.contracts.messages import rfc3339
    from pipelines.operate.history import AROUND, scored_around, scored_at

    wanted, since = found.wanted_at(at_ms)
    scored = scored_around(here.connection(), spec, at_ms)
    live = scored_at(scored, at_ms)
    ordered = wanted.thresholds.get(wanted.digest or "")
    threshold = ordered.value if ordered else _own_threshold(here, spec, wanted.digest)
    agrees = not live or wanted.digest is None or wanted.digest in live
    versions = _versions(here, spec, {one for one in (wanted.digest, *(one.model for one in scored)) if one})
    if as_json:
        facts: dict[str, Any] = {"at": rfc3339(at_ms), "wanted": wanted.digest, "threshold": threshold}
        facts |= {"threshold_ordered": ordered is not None, "since": since and _facts(since, versions)}
        models = [
            {"model": o.model, "first": rfc3339(o.first_ms), "last": rfc3339(o.last_ms), "events": o.n} for o in scored
        ]
        _print_json(facts | {"scored": models, "agrees": agrees})
        return agrees
    lines = [f"No model was ordered until {rfc3339(at_ms)}."]
    if wanted.digest is not None:
        of = "ordered" if ordered else "its own"
        about = "unknown" if threshold is None else f"{threshold:.9g}"
        lines = [f"Wanted: {_named(wanted.digest, versions)}, threshold {about} ({of})"]
    if since is not None:
        lines.append(f"  since {rfc3339(since.at_ms)}: {since.order.kind} by {since.order.by} ({since.order.why})")
    minutes = AROUND.total_seconds() / 60
    for one in scored:
        lines.append(
            f"Scored: {_named(one.model, versions)}, {one.n:,} events from {rfc3339(one.first_ms)} to "
            f"{rfc3339(one.last_ms)}"
        )
    lines.append(f"(within {minutes:g} minutes)" if scored else f"Nothing was scored within {minutes:g} minutes of it.")
    if not agrees:
        lines.append("They DIFFER: the wanted model did not score at that time.")
    for line in lines:
        out.print(clean(line), soft_wrap=True, highlight=False, markup=False)
    return agrees


def _own_threshold(here: "Settings", spec: "Stream", digest: str | None) -> float | None:
    from flows.serve.model import model_of

    try:
        return None if digest is None else model_of(here, spec, digest).threshold
    except UnmaskError:
        return None


def _versions(here: "Settings", spec: "Stream", digests: "Iterable[str]") -> "dict[str, int]":
    """The versions of models, where MLflow answers and knows them."""
    from flows.settings import registry_name
    from models.errors import ModelError
    from models.ship import registry

    uri, found = here.tracking_uri_or_nowhere(), dict[str, int]()
    try:
        for digest in digests if registry.answers(uri) else ():
            version = registry.version_with(registry_name(spec), digest, tracking_uri=uri)
            if version is not None:
                found[digest] = version
    except ModelError:
        pass  # then digests must do
    return found


def _from(entry: "Entry") -> str | None:
    return entry.before.digest or entry.order.before


def _named(digest: str | None, versions: "Mapping[str, int]") -> str:
    if not digest:
        return "none"
    return digest[:_SHORT] + (f" (version {versions[digest]})" if digest in versions else "")


def _what(entry: "Entry") -> str:
    order = entry.order
    if order.kind == "threshold":
        return "threshold " + ("its own" if order.threshold is None else f"{order.threshold:.6g}")
    return order.kind + " (forced)" * order.forced


def _facts(entry: "Entry", versions: "Mapping[str, int]") -> "dict[str, Any]":
    """An order for programs."""
    import msgspec

    from pipelines.contracts.messages import rfc3339

    order, before = entry.order, _from(entry)
    facts = {"offset": entry.offset, "stored_at": rfc3339(entry.at_ms), "hash": entry.hash, "from": before}
    facts |= {"from_version": versions.get(before or ""), "version": versions.get(order.digest)}
    told = msgspec.to_builtins(order)
    return {name: value for name, value in (told | facts).items() if value is not None}


def _print_json(facts: "Mapping[str, Any]") -> None:
    import msgspec

    sys.stdout.write(json_line(msgspec.json.encode(facts).decode()) + "\n")


def _print_table(shown: "Iterable[Entry]", versions: "Mapping[str, int]") -> None:
    from rich.table import Table
    from rich.text import Text

    from pipelines.contracts.messages import rfc3339

    table = Table("when", "who", "what", "from", "to", "why", box=None, pad_edge=False)
    for entry in shown:
        order = entry.order
        to = _named(order.digest, versions) if order.kind != "threshold" else ""
        cells = (rfc3339(entry.at_ms), order.by, _what(entry), _named(_from(entry), versions), to, order.why)
        table.add_row(*(Text(clean(cell)) for cell in cells))
    out.print(table)
