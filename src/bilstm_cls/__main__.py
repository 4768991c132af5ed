"""`python -m bilstm_cls` and `bilstm-cls` are the command line."""

import signal


def main() -> None:
    """Runs the command line. Until that listens to Ctrl-C itself, Ctrl-C ends the program without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bilstm_cls import cli

    cli.main()


if __name__ == "__main__":
    main()
