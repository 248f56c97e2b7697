"""`unmask refused`: the events that were refused, and how to send them again once the cause is mended."""

import heapq
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import StreamOption, settings, stream_of, stream_words, time_ms
from flows.cli.terminal import out
from flows.screen import clean, json_line
from pipelines.contracts.contract import RULES
from pipelines.errors import UnmaskError

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.kafka.letters import Choice, Letter
    from pipelines.operate.ledger import Ledger

app = typer.Typer(help="Show refused events, and send them again once the cause is mended.", no_args_is_help=True)
RuleOption = Annotated[
    list[str] | None, typer.Option("--rule", metavar="RULE", help="Only events refused by this rule; repeatable.")
]
PartitionOption = Annotated[
    list[int] | None, typer.Option("--partition", min=0, metavar="NUMBER", help="Only this partition; repeatable.")
]
SinceOption = Annotated[str | None, typer.Option(help="Only events refused since this time, e.g. 2026-03-02T12:00Z.")]
UntilOption = Annotated[str | None, typer.Option(help="Only events refused before this time.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
DEFAULT_LAST = 20


@app.command("list")
def list_(
    stream: StreamOption = None,
    rule: RuleOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    partition: PartitionOption = None,
    last: Annotated[
        int | None,
        typer.Option("--last", "-n", min=0, help=f"How many of the newest to show; default {DEFAULT_LAST}, JSON all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show refused events: when, by which rule and why, their place in the events topic, and how many by rule.

    Nothing is shown of an event but what its dead letter says, and the bytes of the event only with --json.

    [bold]Examples[/bold]

    unmask refused list --stream payments

    unmask refused list --stream payments --rule out_of_range --since 2026-03-02T12:00Z --json > refused.jsonl
    """
    from pipelines.kafka.letters import letters
    from pipelines.operate.ledger import Ledger

    spec, choice = stream_of(stream), _choice(rule, since, until, partition)
    connection = settings().connection()
    ledger = Ledger(connection, spec)
    if last is None:
        last = sys.maxsize if as_json else DEFAULT_LAST
    counts, n_before = Counter[str](), 0
    newest: list[tuple[int, int, Letter]] = []  # a heap
    for batch in letters(connection, spec, choice):
        for letter in batch:
            counts[letter.refused.rule] += 1
            n_before += letter.place in ledger
            if as_json and last == sys.maxsize:
                _print_json(letter, ledger)
            else:
                heapq.heappush(newest, (letter.at_ms, counts.total(), letter))
                if len(newest) > last:
                    heapq.heappop(newest)
    shown = [letter for _, _, letter in sorted(newest)]
    if as_json:
        for letter in shown:
            _print_json(letter, ledger)
        return
    if shown:
        out.print(_table(shown, ledger))
    by_rule = f" ({', '.join(f'{n:,} {clean(name)}' for name, n in counts.most_common())})" if counts else ""
    out.print(
        f"{counts.total():,} refused{by_rule}; {n_before:,} were sent again.",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def replay(
    stream: StreamOption = None,
    rule: RuleOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    partition: PartitionOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send the events; without it they are only counted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send refused events again, after the cause is mended: those that keep the rules of the stream file now.

    Change the stream file first and start the scorer with it. Each event is sent again at most once, as a new event
    with the same key in the same partition; its header `unmask_replay_of` names the old place. Duplicates are left
    out. Exit code 1 if some of the events cannot be sent.

    [bold]Examples[/bold]

    unmask refused replay --stream payments --rule out_of_range

    unmask refused replay --stream payments --rule out_of_range --since 2026-03-02T12:00Z --yes
    """
    import msgspec

    from flows import progress
    from pipelines.operate.resend import NEVER, resend

    spec, choice = stream_of(stream), _choice(rule, since, until, partition)
    connection = settings().connection()
    with progress.shown("replay") as report:
        found = resend(
            connection,
            spec,
            choice,
            send=yes,
            progress=lambda done, n: report(done / max(n, 1), f"{done:,} of {n:,} dead letters"),
        )
    if as_json:
        said = {"sent": yes, "rules": found.rules, "left_out": found.left_out}
        sys.stdout.write(json_line(msgspec.json.encode(said).decode()) + "\n")
        raise typer.Exit(0 if found.is_whole else 1)
    for name, one in sorted(found.rules.items()):
        words = [f"{one.n_before:,} sent before", f"{one.n_fit:,} fit the stream file"]
        words += [f"{n:,} break {clean(again)}" for again, n in one.again.most_common()]
        words += [f"{one.n_gone:,} no longer in Kafka"] if one.n_gone else []
        words += [f"{one.n_taken:,} are being sent by another process"] if one.n_taken else []
        out.print(f"{clean(name)}: {one.n_letters:,} refused: {', '.join(words)}",
                  highlight=False, markup=False, soft_wrap=True)  # fmt: skip
    for name, n in found.left_out.items():
        out.print(f"{name}: {n:,} left out: {NEVER[name]}", highlight=False, markup=False, soft_wrap=True)
    if yes:
        out.print(f"{found.n_sent:,} events were sent to {spec.topic('events')}.", highlight=False, soft_wrap=True)
    elif found.n_fit:
        out.print(f"Nothing was sent. To send {found.n_fit:,} events again, start the scorer with "
                  f"{stream_words(stream)} and add --yes.", highlight=False, soft_wrap=True)  # fmt: skip
    else:
        out.print("There is nothing to send.")
    raise typer.Exit(0 if found.is_whole else 1)


def _choice(
    rules: Sequence[str] | None, since: str | None, until: str | None, partitions: Sequence[int] | None
) -> "Choice":
    from pipelines.kafka.letters import Choice

    for name in rules or ():
        if name not in RULES:
            raise UnmaskError(f"--rule is {name!r}; it must be one of {', '.join(RULES)}")
    return Choice(
        frozenset(rules) if rules else None,
        frozenset(partitions) if partitions else None,
        time_ms(since),
        time_ms(until),
    )


def _print_json(letter: "Letter", ledger: "Ledger") -> None:
    import msgspec

    from pipelines.contracts.messages import rfc3339

    said = {"refused_at": rfc3339(letter.at_ms), "sent_again": letter.place in ledger}
    line = msgspec.json.encode(said | msgspec.structs.asdict(letter.refused)).decode()
    sys.stdout.write(json_line(line) + "\n")


def _table(shown: Sequence["Letter"], ledger: "Ledger") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from pipelines.contracts.messages import rfc3339

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("refused at", "rule", "partition:offset", "sent again", "detail"):
        table.add_column(name, overflow="fold", no_wrap=name != "detail")
    for letter in shown:
        source = letter.refused.source
        cells = (
            rfc3339(letter.at_ms),
            letter.refused.rule,
            f"{source.partition}:{source.offset}",
            "yes" if letter.place in ledger else "",
            letter.refused.detail,
        )
        table.add_row(*(Text(clean(cell)) for cell in cells))
    return table
