"""The deployments of a stream on the Prefect server: each flow with its schedule, limit and parameters."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import Flow
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.types.entrypoint import EntrypointType

from flows.backtest import backtest
from flows.finetune import finetune
from flows.ingest import ingest
from flows.maintain_lake import maintain_lake
from flows.monitor import DRIFT_EVENT, monitor, resource_of
from flows.pretrain import pretrain
from flows.promote import promote
from flows.retrain import retrain
from flows.settings import POOL as POOL
from flows.streams.shipped import load

# A run that was killed holds its place until the lease of the server ends; the next run waits for it, and goes on.
ONE_AT_A_TIME = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE, grace_period_seconds=60
)


@dataclass(frozen=True)
class Planned:
    """A flow and when it runs: `every` so long, or by a `cron` line in UTC."""

    flow: Flow[..., Any]
    tag: str
    every: timedelta | None = None
    cron: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schedule(self) -> CronSchedule | IntervalSchedule | None:
        """The schedule, as Prefect has it."""
        if self.every is not None:
            return IntervalSchedule(interval=self.every)
        return None if self.cron is None else CronSchedule(cron=self.cron, timezone="UTC")

    @property
    def words(self) -> str:
        """The schedule in words."""
        if self.every is not None:
            return f"every {self.every.total_seconds() / 60:g} minutes"
        return f"{self.cron} UTC" if self.cron else "on demand"


PLAN: tuple[Planned, ...] = (
    Planned(ingest, "data", every=timedelta(minutes=5)),
    Planned(maintain_lake, "data", cron="30 2 * * *"),
    Planned(pretrain, "model", cron="0 1 * * 0"),
    Planned(finetune, "model", cron="0 3 * * *"),
    Planned(promote, "model", cron="0 5 * * *"),
    Planned(monitor, "watch", cron="7 * * * *"),
    Planned(retrain, "model"),
    Planned(backtest, "watch"),
)


@dataclass(frozen=True)
class Deployed:
    """A deployment on the server."""

    name: str
    schedule: str
    id: str


def deploy(stream: Path, *, paused: bool = False, plan: Sequence[Planned] = PLAN) -> list[Deployed]:
    """Create or update the deployments of a stream, and the work pool. Their names begin with that of the stream.

    Args:
        stream: path of the stream file, or the name of a shipped stream; the worker reads it from there.
        paused: create the schedules, but do not start runs yet.

    Raises:
        StreamFileError: the stream file has a mistake.
    """
    spec = load(stream)
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another machine was first
                client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    given = str(stream) if not Path(stream).exists() else str(Path(stream).resolve())
    done = []
    for one in plan:
        schedule = one.schedule
        deployment = one.flow.to_deployment(
            name=f"{spec.name}-{one.flow.name}",
            schedules=[schedule] if schedule else None,
            paused=True if paused else None,  # None: what was paused on the page stays so
            concurrency_limit=ONE_AT_A_TIME,
            parameters={"stream": given, **one.parameters},
            description=(one.flow.description or "").partition("\n\nArgs:")[0],
            tags=[spec.name, one.tag],
            work_pool_name=POOL,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        assert isinstance(deployment, RunnerDeployment)
        done.append(Deployed(str(deployment.name), one.words, str(deployment.apply())))
        if one.flow is retrain:
            _retrain_on_drift(spec.name, UUID(done[-1].id))
    return done


def _retrain_on_drift(stream: str, deployment: UUID) -> None:
    """Create or update the automation that answers the event of the monitor by training."""
    name = f"{stream}-retrain-on-drift"
    trigger = EventTrigger(
        expect={DRIFT_EVENT},
        match=ResourceSpecification({"prefect.resource.id": resource_of(stream)}),
        posture=Posture.Reactive,
        threshold=1,
    )
    action = RunDeployment(deployment_id=deployment, parameters={"why": "{{ event.payload.words }}"})
    words = "Trains and judges a new model when the monitor has found that a field has moved."
    automation = Automation(name=name, description=words, trigger=trigger, actions=[action])
    try:
        automation.id = cast(Automation, Automation.read(name=name)).id
    except ValueError:  # there is none of this name
        automation.create()
    else:
        automation.update()
