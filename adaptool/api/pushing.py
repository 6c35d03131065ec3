"""The verb that sends an artifact to the Hub."""

from __future__ import annotations

from pathlib import Path

from adaptool.api.door import Progress
from adaptool.api.shipping import Card, Shipment
from adaptool.model.hub_results import PushResult
from adaptool.model.keywords import reads_keywords
from adaptool.model.receipt import OutputEntry
from adaptool.remote.hub import client
from adaptool.remote.upload import Pushed, refuse_mixture, target
from adaptool.remote.uri import HubUri, check_local


@reads_keywords
def push(
    path: Path | str,
    uri: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PushResult:
    """Send the adapter or model at `path` to `hf://owner/name[@branch][/folder]`, in one commit.

    Before the network is touched: InputError (exit 3) for what `validate` calls an error, for
    pickles, access tokens and stray files. Then RemoteError (exit 6) where the Hub refuses or the
    branch moved. The repository is made where there is none. `create_pr` proposes the commit.
    """
    place = HubUri.parse(uri)
    check_local(Path(path))
    shipment = Shipment.of(Path(path), place)
    if dry_run:
        shipment = shipment if place.folder else shipment.carded(Card(None))
        return _result(place, shipment, None)
    goal = target(client(), place, private=private, create_pr=create_pr)
    refuse_mixture(goal, [file.name for file in shipment.files])
    if not place.folder:
        shipment = shipment.carded(Card.there(goal))
    title = message or f"Push {shipment.facts.title} with adaptool"
    return _result(place, shipment, shipment.send(goal, title, progress))


def _result(place: HubUri, shipment: Shipment, pushed: Pushed | None) -> PushResult:
    files = tuple(OutputEntry(file.name, file.size, file.sha256) for file in shipment.files)
    commit, url = (None, None) if pushed is None else (pushed.commit, pushed.url)
    said = () if pushed is None else pushed.findings(str(place))
    findings = (*shipment.findings, *said)
    return PushResult(place.repo, commit, url, files, findings, dry_run=pushed is None)
