"""`unmask use-model`, `rollback`, `set-threshold`, `set-budget`, `shadow`: orders to the running scorers."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import ByOption, StreamOption, settings, stream_of
from flows.cli.terminal import out
from flows.screen import plain
from pipelines.errors import UnmaskError

if TYPE_CHECKING:
    from flows.serve.orders import Operator

app = typer.Typer()

WhyOption = Annotated[str, typer.Option(help="The reason; it is kept with the order.")]


def _operator(stream: StreamOption, by: str) -> "Operator":
    from flows.serve.orders import Operator

    return Operator(settings(), stream_of(stream), by=by)


def _show(done: str) -> None:
    from flows.serve.champion import LOOK_EVERY_S

    out.print(f"Ordered: {plain(done)} Scorers follow within {LOOK_EVERY_S + 2:g} s.", soft_wrap=True, highlight=False)


@app.command(rich_help_panel="Live scoring")
def use_model(
    digest: Annotated[str, typer.Argument(help="Digest of a model in the registry or in the model cache.")],
    by: ByOption,
    stream: StreamOption = None,
    why: WhyOption = "by hand",
) -> None:
    """Tell the running scorers to use another model at once, through Kafka: also if MLflow is not available.

    The scorers otherwise follow the champion in MLflow by themselves. What was ordered or promoted last is used. If
    MLflow is available, the model becomes the champion there, too.

    [bold]Example[/bold]  unmask use-model DIGEST --stream payments --why "the champion is too strict"
    """
    _show(_operator(stream, by).use(digest, why=why))


@app.command(rich_help_panel="Live scoring")
def rollback(by: ByOption, stream: StreamOption = None, why: WhyOption = "by hand") -> None:
    """Go back to the model that was used before the present one. Repeat it to go further back.

    Its threshold is the last one that was ordered for it, or its own.

    [bold]Example[/bold]  unmask rollback --stream payments --why "alerts without a pattern since noon"
    """
    _show(_operator(stream, by).roll_back(why=why))


@app.command(rich_help_panel="Live scoring")
def set_threshold(
    by: ByOption,
    threshold: Annotated[float | None, typer.Argument(help="An event raises an alert if its score is higher.")] = None,
    own: Annotated[bool, typer.Option("--own", help="Use the model's own threshold again.")] = False,
    model: Annotated[str | None, typer.Option(help="Digest of the model; by default of the one in use.")] = None,
    stream: StreamOption = None,
    why: WhyOption = "by hand",
) -> None:
    """Change the threshold of alerts without training. Scores that were decided with it name it.

    It holds for one model, also after a restart or a rollback to it. The next model brings its own threshold.

    [bold]Examples[/bold]

    unmask set-threshold 0.97 --stream payments --why "more alerts than we can review"

    unmask set-threshold --own --stream payments
    """
    if (threshold is None) != own:
        raise UnmaskError("give a threshold between 0 and 1, or --own for that of the model")
    _show(_operator(stream, by).set_threshold(threshold, why=why, model=model))


@app.command(rich_help_panel="Live scoring")
def set_budget(
    per_day: Annotated[float, typer.Argument(help="Alerts per day.")],
    by: ByOption,
    stream: StreamOption = None,
    why: WhyOption = "by hand",
) -> None:
    """Change how many alerts a day the model in use raises, without training.

    The threshold is computed from the scores that this model has published lately, at most 500,000: with it, at most
    so many of them a day would have raised an alert. For the models to come, change `budget` in the stream file, too.

    [bold]Example[/bold]  unmask set-budget 40 --stream payments --why "two analysts on leave"
    """
    _show(_operator(stream, by).set_budget(per_day, why=why))


@app.command(rich_help_panel="Live scoring")
def shadow(
    by: ByOption,
    model: Annotated[
        str | None,
        typer.Argument(help="Digest of a model; `challenger`: the one that passed the gate; or `report`."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Score with the champion only.")] = False,
    stream: StreamOption = None,
    why: WhyOption = "by hand",
) -> None:
    """Let a challenger score the same events to the shadow topic, and compare it with the champion.

    It reads the same features after the champion's scores are published. It never holds up the champion: events for
    which it has no time are left out and counted in the status file.

    [bold]Examples[/bold]

    unmask shadow challenger --stream payments

    unmask shadow report --stream payments

    unmask shadow --off --stream payments
    """
    if (model is None) != off:
        raise UnmaskError("give the digest of a model, `challenger`, `report` or --off")
    if model == "report":
        from flows.serve.shadow_report import shadow_report

        for line in shadow_report(settings().connection(), stream_of(stream)).words:
            out.print(line, soft_wrap=True, highlight=False, markup=False)
        return
    _show(_operator(stream, by).shadow(model, why=why))
