"""Load a pretrained encoder from its MLflow run."""

import re
import shutil

from flows.settings import Settings
from models.fit.pretrain import Pretrained
from models.ship import registry
from models.ship.manifest import ArtifactError
from models.ship.pretrained import load_pretrained
from models.ship.registry import FoundRun
from pipelines.contracts.stream import Stream
from pipelines.errors import UnmaskError

FOLDER = "encoder"  # in the run's artifacts; its hash is in the tag `encoder.digest`
_DIGEST = f"{FOLDER}.digest"


class NoEncoderError(UnmaskError):
    """There is no encoder, or it does not match the tag of its run."""


def find(settings: Settings, stream: Stream, *, run_id: str | None = None) -> FoundRun:
    """Find the newest finished pretrain run of a stream, or a given run.

    Raises:
        NoEncoderError: there is no such run, or it has no complete encoder.
    """
    uri = settings.tracking_uri()
    if run_id is None:
        found = registry.newest_run(f"{stream.name}/pretrain", tag=_DIGEST, tracking_uri=uri)
        if found is None:
            raise NoEncoderError(
                f"MLflow at {uri} has no finished pretrain run of {stream.name}; run `unmask pretrain`"
            )
        return found
    found = registry.find_run(run_id, tracking_uri=uri)
    if found is None or _DIGEST not in found.tags:
        raise NoEncoderError(f"run {run_id} in MLflow at {uri} has no complete encoder; use a finished pretrain run")
    return found


def fetch(settings: Settings, run: FoundRun) -> Pretrained:
    """Load the encoder of a run through a local cache. A damaged copy is downloaded once more.

    Raises:
        NoEncoderError: the encoder in MLflow does not match the tag of its run.
    """
    digest = run.tags.get(_DIGEST, "")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):  # it is used as a folder name
        raise NoEncoderError(
            f"tag {_DIGEST} of run {run.run_id} is {digest!r}; it must be a SHA-256 hash. Run `unmask pretrain` again"
        )
    folder = settings.encoder_cache / digest
    if folder.is_dir():
        try:
            return load_pretrained(folder, expect=digest)
        except ArtifactError:
            shutil.rmtree(folder)
    registry.fetch_folder(run.run_id, FOLDER, folder, tracking_uri=settings.tracking_uri())
    try:
        return load_pretrained(folder, expect=digest)
    except ArtifactError as error:
        shutil.rmtree(folder)
        raise NoEncoderError(
            f"the encoder of run {run.run_id} does not match its tag ({error}); run `unmask pretrain` again"
        ) from error
