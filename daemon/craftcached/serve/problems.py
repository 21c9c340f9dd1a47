"""Failures over HTTP: answered by RFC 9457 problem documents, and logged."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

from aiohttp import web

from craftcache.errors import CraftcacheError

from .openapi import PROBLEM
from .peers import peer_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from craftcached.job_log import Refusals

__all__ = ["ProblemDocuments", "own_fault", "problem_response"]

log = logging.getLogger("craftcached")


class ProblemDocuments:
    """Answers requests that fail.

    Args:
        refusals: Logs the requests that are answered by an error.
    """

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    @web.middleware
    async def middleware(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Every failure as a problem document."""
        try:
            return await handler(request)
        except CraftcacheError as error:
            self.log(request, error)
            return problem_response(error.to_problem())
        except web.HTTPException as error:
            refusal = CraftcacheError(
                error.reason or "refused",
                hint="Are craftcache and craftcached of the same release?",
            )
            self.log(request, refusal)
            return problem_response(
                refusal.to_problem() | {"title": error.reason, "status": error.status}
            )
        except Exception:
            log.exception("a %s request failed", request.method)
            return problem_response(own_fault().to_problem())

    def log(self, request: web.Request, error: CraftcacheError) -> None:
        """Log that a request was refused, or a part of it, by whose peer and why."""
        resource = request.match_info.route.resource
        shown = f"{request.method} {resource.canonical if resource else 'other'}"
        with contextlib.suppress(CraftcacheError, OSError):  # it may be gone by now
            peer = peer_of(request.transport)
            self._refusals.log(shown, error, uid=peer.uid, pid=peer.pid)


def own_fault() -> CraftcacheError:
    """The answer to a client where the daemon has a bug; the log has the exception."""
    return CraftcacheError(
        "the daemon failed at this request", hint="Its log says more", retryable=True
    )


def problem_response(problem: dict[str, Any]) -> web.Response:
    """The answer that a problem document is."""
    retry_after = problem.get("retry_after")
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    return web.json_response(
        problem, status=problem["status"], content_type=PROBLEM, headers=headers
    )
