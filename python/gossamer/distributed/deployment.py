"""The application for Ray Serve: a front, and replicas of a model that come and go with the load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig

from .front import Front
from .models import shared_folder
from .options import options
from .replica import Replica

_AHEAD = 2  # requests that a replica may have, over the texts that it writes at once, so that none is waited for
_FRONT = 1000  # requests that a front passes on at once


def app(given: Mapping[str, Any]) -> serve.Application:
    """Returns the application of a model.

    `serve run gossamer.distributed:app model=FOLDER replicas=2` runs it, or `serve.run(app({"model": ...}))`.

    Args:
        given: Options, see `gossamer.distributed.options.Options`.

    Raises:
        GossamerError: an option is no good, or the model is not there or not packed.
    """
    chosen = options(given)
    folder, settings = shared_folder(chosen.model), chosen.settings()
    most = chosen.most_replicas or chosen.replicas
    ongoing = _AHEAD * chosen.batch
    replicas = serve.deployment(Replica).options(
        name="Replica",
        ray_actor_options={"num_cpus": chosen.cpus},
        max_ongoing_requests=ongoing,
        max_queued_requests=chosen.max_queue,
        graceful_shutdown_timeout_s=settings.grace_seconds,  # that texts get to end where replicas become fewer
        autoscaling_config=AutoscalingConfig(
            min_replicas=chosen.replicas,
            max_replicas=most,
            initial_replicas=chosen.replicas,
            target_ongoing_requests=chosen.batch,
        ),
    )
    front = serve.deployment(Front).options(
        name="Front",
        ray_actor_options={"num_cpus": 0},
        num_replicas=chosen.fronts,
        max_ongoing_requests=_FRONT,
    )
    bound = replicas.bind(str(folder), chosen.name or folder.name, chosen, settings)
    return front.bind(bound, settings)
