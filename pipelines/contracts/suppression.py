"""A suppression: alerts of one entity are not wanted until a time. An order gives it, a record on alerts names it."""

import msgspec


class Suppression(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts of an entity are not wanted.

    - `entity`, `id`: such as `card` and `4711`.
    - `until`: it concerns events that arrive before this time.
    - `by`, `at`, `why`: who ordered it, when, and the reason.
    """

    entity: str
    id: str
    until: str
    by: str
    at: str
    why: str
