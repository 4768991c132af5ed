"""The command that answers over HTTP."""

from importlib.util import find_spec
from typing import Annotated

import typer

from bilstm_cls.commands.options import Device, Quiet, RunDir, Verbose, checked_device, chosen_run, start_logging
from bilstm_cls.errors import ConfigError


def serve(
    run: RunDir = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; other machines reach only another one.", metavar="HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.", metavar="PORT")
    ] = 8000,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Answer over HTTP: /predict, /health, /metrics, a page."""
    start_logging(quiet=quiet, verbose=verbose)
    missing = [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}; run: pip install 'bilstm-cls[serve]'")
    from bilstm_cls.serve.server import serve as answer_requests

    answer_requests(chosen_run(run), host=host, port=port, device=checked_device(device))
