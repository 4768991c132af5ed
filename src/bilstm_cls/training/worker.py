"""A further process of a run: `python -m bilstm_cls.training.worker RUN RANK SIZE MEETING`."""

import logging
import sys
from pathlib import Path

from bilstm_cls.device import choose_device
from bilstm_cls.errors import StoppedError, UserError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.distributed import joined
from bilstm_cls.training.run import follow
from bilstm_cls.training.signals import StopSignals


def main(path: str, rank: str, size: str, meeting: str) -> None:
    """Trains in step with process 0, which tells the user whatever is to be told."""
    package = logging.getLogger("bilstm_cls")
    package.addHandler(logging.NullHandler())
    package.propagate = False
    run = RunDirectory(Path(path))
    try:
        with StopSignals() as signals:
            config = run.load_config()
            device = choose_device(config.train.device)
            with joined(device, rank=int(rank), size=int(size), meeting=meeting) as group:
                follow(run, config, group, signals)
    except (UserError, StoppedError) as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
