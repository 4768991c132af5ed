"""What a shell offers for an option when its user presses Tab: light, because it runs at every press."""

from pathlib import Path


def complete_run(incomplete: str) -> list[str]:
    """Returns the finished runs whose path starts so: those under `runs/`, or in the folder that was typed."""
    folder = incomplete.rpartition("/")[0] or "runs"
    found = sorted(path.parent.as_posix() for path in Path(folder).glob("*/model.safetensors"))
    # Something that is no path yet is the start of a name.
    return [path for path in found if path.startswith(incomplete) or path.rpartition("/")[2].startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Returns the YAML files and folders that start so, and the configs of this project where nothing was typed."""
    folder, slash, name = incomplete.rpartition("/")
    entries = sorted(Path(folder + slash or ".").glob(f"{_literally(name)}*"))
    offers = [f"{folder}{slash}{entry.name}" + "/" * entry.is_dir() for entry in entries if _is_offered(entry)]
    if not incomplete:
        offers += [path.as_posix() for path in sorted(Path("configs").glob("*.yaml"))]
    return offers


def complete_override(incomplete: str) -> list[str]:
    """Returns the keys of the config that start so, each with the `=` that comes after it."""
    from bilstm_cls.config import config_keys

    keys = config_keys()
    names = [f"{section}.{key}" if section else key for section, own in keys.items() for key in own]
    return [f"{name}=" for name in sorted(names) if name not in keys and name.startswith(incomplete)]


def _literally(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _is_offered(entry: Path) -> bool:
    return not entry.name.startswith(".") and (entry.is_dir() or entry.suffix in (".yaml", ".yml"))
