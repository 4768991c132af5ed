"""The network: torch only, no config, no files."""
