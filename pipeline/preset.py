"""Switch `params.yaml` to one of the presets in `configs/`.

    python -m pipeline.preset --list
    python -m pipeline.preset smoke
    python -m pipeline.preset default

A preset file holds only what differs from `configs/default.yaml`, which holds everything; so the
result does not depend on what `params.yaml` held before, and switching back is exact. Comments and
layout of `params.yaml` stay. The result is checked as a whole before anything is written.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from llm_trainer.config.experiment import experiment_from_dict
from llm_trainer.config.loader import parse_config_text
from llm_trainer.exceptions import ConfigurationError
from llm_trainer.files import write_text
from pipeline.params import PARAMS
from pipeline.stage import run_stage
from pipeline.yaml_text import Value, read_values, same, set_values

CONFIGS = Path("configs")
DEFAULT = "default"


def preset_names(configs: Path = CONFIGS) -> list[str]:
    """Names of the presets, default first. Files named `*_config.*` are the library's, not ours.

    Raises:
        ConfigurationError: `configs` has no presets (the command was given outside the project).
    """
    names = sorted(p.stem for p in configs.glob("*.yaml") if not p.stem.endswith("_config"))
    if DEFAULT not in names:
        raise ConfigurationError(
            f"{configs / DEFAULT}.yaml: no such file; give the command in the project's root"
        )
    return [DEFAULT, *(name for name in names if name != DEFAULT)]


def describe(name: str, configs: Path = CONFIGS) -> str:
    """The preset's first comment line; for the default, what it is."""
    if name == DEFAULT:
        return "What params.yaml holds in a fresh clone: a few minutes on 2 CPU cores, no network."
    first = (configs / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def preset_values(name: str, configs: Path = CONFIGS) -> dict[str, dict[str, Value]]:
    """All values of the preset `name`: the default's, with its own over them.

    Raises:
        ConfigurationError: no such preset, with the nearest name; or a damaged file.
    """
    names = preset_names(configs)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigurationError(f"no preset '{name}'; {hint}presets: {', '.join(names)}")
    merged: dict[str, dict[str, Value]] = {}
    for layer in dict.fromkeys((DEFAULT, name)):
        path = configs / f"{layer}.yaml"
        for section, values in read_values(path.read_text(encoding="utf-8"), path).items():
            merged.setdefault(section, {}).update(values)
    return merged


def apply_preset(
    name: str, params: Path = PARAMS, configs: Path = CONFIGS, *, dry_run: bool = False
) -> list[str]:
    """Merge a preset into the file `params` and return the changes, one line each.

    Nothing is written if nothing changes, with `dry_run`, or on an error.

    Raises:
        ConfigurationError: no such preset, or the merged file would not be valid.
    """
    wanted = preset_values(name, configs)
    try:
        text = params.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = (configs / f"{DEFAULT}.yaml").read_text(encoding="utf-8")
    before = read_values(text, params)
    merged = set_values(text, params, wanted)
    where = f"{params} with preset '{name}'"
    experiment_from_dict(parse_config_text(merged, params), where)
    changes = []
    for section, values in wanted.items():
        for key, value in values.items():
            old = before.get(section, {}).get(key)
            if old is None or not same(old.value, value.value):
                was = "(missing)" if old is None else old.text
                changes.append(f"{section}.{key}: {was} -> {value.text}")
    if not dry_run and (changes or not params.exists()):
        write_text(params, merged)
    return changes


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: a name, or `--list`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.preset", description="Switch params.yaml to a preset of configs/."
    )
    parser.add_argument("name", nargs="?", help="the preset; without it they are listed")
    parser.add_argument("--list", action="store_true", help="list the presets")
    parser.add_argument("--dry-run", action="store_true", help="show the changes, write nothing")
    options = parser.parse_args(arguments)
    if options.list or options.name is None:
        names = preset_names()
        for name in names:
            print(f"{name:<{max(map(len, names))}}  {describe(name)}")
        return
    changes = apply_preset(options.name, dry_run=options.dry_run)
    for line in changes:
        print(line)
    if not changes:
        print(f"{PARAMS} holds the preset '{options.name}' already")
    elif options.dry_run:
        print(f"{len(changes)} values would change; nothing was written")
    else:
        print(f"{PARAMS}: {len(changes)} values changed; next: make repro (or dvc repro)")


if __name__ == "__main__":
    run_stage("preset", main)
