"""What a list that the upstream pushed says, compared with a fetch.

A push has the instances of a list for clients (nacos-grpc.md 4), and a fetch may know more. A pushed list counts only
if a fetch of the same server would give the same snapshot. Otherwise readers would see the two in turns.

    not if                                  | because
    ----------------------------------------+--------------------------------------------------------------------------
    protection masks the health             | a push then shows unhealthy instances as healthy
    no snapshot is known, or only from disk | a fetch also gives the threshold, and `cacheMillis` as HTTP clients see it
    the known one has a threshold or        | they may have changed, and only the true health of all instances tells
    masking                                 | whether protection begins
    an instance is unhealthy, and none was  | fetches ask for the threshold only then, so it is not known yet
    a disabled instance is known            | a push leaves it out
    fetches show disabled ones, and the     | an instance that the push lacks may have been disabled, and a push without
    push lacks one, or brings nothing new   | a difference may be about a disabled one
"""

from __future__ import annotations

from nacos_proxy.model.services import Snapshot


def completed(known: Snapshot | None, pushed: Snapshot, *, fetch_shows_more: bool = False) -> Snapshot | None:
    """The snapshot that a fetch would give now, None if only a fetch can tell.

    `known`: what the upstream last listed. `fetch_shows_more`: a fetch also lists disabled instances.
    """
    if known is None or known.threshold > 0 or known.masking or pushed.masking:
        return None
    if not all(instance.enabled for instance in known.instances):
        return None
    if fetch_shows_more and (pushed.instances == known.instances or not known.by_key.keys() <= pushed.by_key.keys()):
        return None
    if all(i.healthy for i in known.instances) and not all(i.healthy for i in pushed.instances):
        return None
    return known if pushed.instances == known.instances else known.with_by_key(pushed.by_key)
