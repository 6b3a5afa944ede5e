"""The endpoint itself: is it there, and what is it."""

from __future__ import annotations

import os

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from imgstore.docker_api.info import describe_service
from imgstore.docker_api.service import service_of
from imgstore.docker_api.versions import NEWEST, OLDEST, program_version, show_version
from registry_client.platform import Platform


async def ping(request: Request) -> Response:
    """``GET|HEAD /_ping``; version 1 of the builder, so that clients do not look for BuildKit."""
    headers = {
        "Builder-Version": "1",
        "Swarm": "inactive",
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
    }
    return Response(b"" if request.method == "HEAD" else b"OK", headers=headers, media_type="text/plain")


async def version(request: Request) -> Response:
    """``GET /version``. The same is there twice: newer clients read the component, older ones the object."""
    details = {
        "ApiVersion": show_version(NEWEST),
        "MinAPIVersion": show_version(OLDEST),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": Platform.host().architecture,
        "KernelVersion": os.uname().release,
        "BuildTime": "",
    }
    engine = {"Name": "Engine", "Version": program_version(), "Details": {**details, "Experimental": "false"}}
    return JSONResponse({"Platform": {"Name": "imgstore"}, "Components": [engine], "Version": program_version(), **details})


async def info(request: Request) -> Response:
    """``GET /info``."""
    return JSONResponse(await run_in_threadpool(describe_service, service_of(request)))


routes = [Route("/_ping", ping), Route("/version", version), Route("/info", info)]
