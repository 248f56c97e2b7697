"""Retry flows only if a server did not answer. Runs that fail because of a user error are not retried."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRunPolicy
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

from models.errors import ModelError
from models.ship.registry import RegistryError
from pipelines.errors import BrokerError, FencedError, LoginError, RejectedError, UnmaskError

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def retry_unless_mistaken(run: Callable[P, R]) -> Callable[P, R]:
    """Decorator below `@flow`: disable the retries of a run if its error cannot be fixed by a retry."""

    @wraps(run)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(*args, **kwargs)
        except (UnmaskError, ModelError) as error:
            if not may_pass(error):
                _take_retries_away()
            raise

    return guarded


def may_pass(error: UnmaskError | ModelError) -> bool:
    """Whether a retry may succeed: Kafka or MLflow did not answer.

    >>> may_pass(BrokerError("no Kafka answers")), may_pass(LoginError("wrong password")), may_pass(UnmaskError("typo"))
    (True, False, False)
    """
    if isinstance(error, BrokerError):
        return not isinstance(error, LoginError | RejectedError | FencedError)
    return isinstance(error, RegistryError)


def _take_retries_away() -> None:
    # Flows have no `retry_condition_fn`, unlike tasks: the server decides by the policy of the run.
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    policy = context.flow_run.empirical_policy.model_dump() | {"retries": 0}
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, empirical_policy=FlowRunPolicy(**policy))
    except (HTTPError, PrefectException) as error:
        log.warning("could not disable retries of this run: Prefect did not answer (%s)", type(error).__name__)
