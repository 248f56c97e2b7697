"""The live scorer as a service, with a linear model instead of a champion: `python -m tests.flows.serve.served`.

The arguments are those of `unmask score`; the settings are in the environment.
"""

from pathlib import Path
from unittest import mock

from flows.cli import main
from flows.serve import champion
from models.ship.registry import Resolved
from tests.pipelines.live.live_scorer import Linear

if __name__ == "__main__":
    alias = Resolved(1, Linear.digest, Path(), registry_answered=False)
    with (
        mock.patch.object(champion, "champion_alias", return_value=alias),
        mock.patch.object(champion, "first_model", lambda settings, stream, *_: Linear(stream)),
    ):
        main()
