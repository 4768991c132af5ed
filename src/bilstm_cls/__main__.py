"""`python -m bilstm_cls` is the command line."""

from bilstm_cls.cli import main

if __name__ == "__main__":
    main()
