"""The live scorer as a service, with a linear model instead of a champion: `python -m tests.flows.serve.served`.

The arguments are those of `unmask score`; the settings are in the environment.
"""

from unittest import mock

from flows.cli import main
from flows.serve import service
from tests.pipelines.live.live_scorer import Linear

if __name__ == "__main__":
    with mock.patch.object(service, "champion", lambda settings, stream: Linear(stream)):
        main()
