"""Write the generated parts of the documentation: `python -m docs.update_results [--check]`.

From `metrics/*.json` of the default run: the table of results in README.md. From
`benchmarks/results.json` and `growth.json`: tables in docs/performance.md. From
`benchmarks/soak.json`: the figures of docs/reliability.md. From `benchmarks/scale_model.json`: the
tables of docs/scale.md. From the config classes and
`configs/default.yaml`: the tables of docs/configuration.md. Each part stands between two markers
and is replaced whole; everything
else is left as it is. A test compares.

Exit codes: 0 done, 1 with `--check` if something is out of date, 2 wrong input.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from benchmarks.peer_tables import peer_settings, peers
from benchmarks.scale_tables import data_scale, several_processes, tables
from llm_trainer.config import (
    BenchmarkConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PackingConfig,
    RuntimeConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
)
from llm_trainer.config.base import Config
from llm_trainer.config.loader import read_config_file
from llm_trainer.exceptions import IntegrityError, LLMTrainerError
from llm_trainer.files import write_text
from llm_trainer.json_file import read_json
from llm_trainer.utils.planning import format_seconds

ROOT = Path(__file__).resolve().parents[1]
README = "README.md"
CONFIGURATION = "docs/configuration.md"
PERFORMANCE = "docs/performance.md"
PEER_RESULTS = ROOT / "benchmarks" / "results.json"
PEER_TRIES = ROOT / "benchmarks" / "peer_tries.json"
GROWTH_RESULTS = ROOT / "benchmarks" / "growth.json"
RELIABILITY = "docs/reliability.md"
SOAK_RESULTS = ROOT / "benchmarks" / "soak.json"
SCALE = "docs/scale.md"
DISTRIBUTED = "docs/distributed.md"
DATA = "docs/data.md"
SCALE_RESULTS = ROOT / "benchmarks" / "scale_model.json"
MEASURED_SCALE = tuple(
    ROOT / "benchmarks" / name for name in ("distributed.json", "data_scale.json")
)
"""Measured on several processes; shown where they are there."""
SECTIONS: dict[str, type[Config]] = {
    "data": SourceConfig,
    "tokenizer": TokenizerConfig,
    "packing": PackingConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "benchmark": BenchmarkConfig,
    "runtime": RuntimeConfig,
}
MISSING = object()


class UpdateError(LLMTrainerError):
    """Markers or figures are not there."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args()
    try:
        wanted = {
            CONFIGURATION: with_configuration(read(CONFIGURATION)),
            PERFORMANCE: with_growth(
                with_peers(read(PERFORMANCE), read_json(PEER_RESULTS), read_json(PEER_TRIES)),
                read_json(GROWTH_RESULTS),
            ),
            RELIABILITY: with_soak(read(RELIABILITY), read_json(SOAK_RESULTS)),
            SCALE: with_scale(read(SCALE), read_json(SCALE_RESULTS)),
            DISTRIBUTED: replaced(
                read(DISTRIBUTED), "distributed", several_processes(_if_there(MEASURED_SCALE[0]))
            ),
            DATA: replaced(read(DATA), "data scale", data_scale(_if_there(MEASURED_SCALE[1]))),
        }
        if (ROOT / "metrics" / "evaluate.json").is_file():
            wanted[README] = with_results(read(README), ROOT / "metrics")
        else:
            print("no metrics/evaluate.json: the table of results stays as it is")
    except LLMTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [name for name, text in wanted.items() if text != read(name)]
    for name in stale:
        if not options.check:
            write_text(ROOT / name, wanted[name])
        print(f"{name}: {'out of date' if options.check else 'written'}")
    if not stale:
        print("nothing to change")
    return 1 if stale and options.check else 0


def read(name: str) -> str:
    """A file of the project as text."""
    return (ROOT / name).read_text(encoding="utf-8")


def replaced(text: str, part: str, content: str) -> str:
    """`text` with `content` between the markers of `part`.

    Raises:
        UpdateError: a marker is missing or stands twice.
    """
    start, end = f"<!-- {part}: start -->", f"<!-- {part}: end -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise UpdateError(f"the markers {start} and {end} must stand once each, in this order")
    before, after = text.partition(start)[0], text.partition(end)[2]
    return f"{before}{start}\n{content}\n{end}{after}"


# --------------------------------------------------------------------------- results


def with_results(text: str, metrics: Path) -> str:
    """The README with the table of the run whose figures are in `metrics`.

    Raises:
        IntegrityError: a metrics file is missing or damaged.
        UpdateError: a figure is missing, or the markers are.
    """
    names = ("download", "tokenizer", "packing", "train", "evaluate", "benchmark")
    figures = {name: read_json(metrics / f"{name}.json") for name in names}
    for name, values in figures.items():
        if not isinstance(values, dict):
            raise IntegrityError(f"{metrics / name}.json: not a mapping of metrics")
    try:
        rows = list(result_rows(figures))
    except KeyError as error:
        raise UpdateError(f"{metrics}: the figure {error} is missing; run `dvc repro`") from error
    lines = [f"| {name} | {value} |" for name, value in [("What", "Figure"), ("---", "---"), *rows]]
    return replaced(text, "results", "\n".join(lines))


def result_rows(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What the default run came to, one line a subject."""
    text, tokenizer, packing = figures["download"], figures["tokenizer"], figures["packing"]
    train, evaluate, benchmark = figures["train"], figures["evaluate"], figures["benchmark"]
    origin = f" of Python {text['python_version']}" if "python_version" in text else ""
    yield (
        "Text",
        f"{text['dataset_name']}{origin}: {megabytes(text['train_bytes'])} in "
        f"{text['train_documents']:,} documents to train on, "
        f"{megabytes(text['validation_bytes'])} in {text['validation_documents']:,} to validate on",
    )
    yield (
        "Tokenizer",
        f"{tokenizer['vocab_size']:,} tokens, {tokenizer['bytes_per_token']:.2f} bytes of "
        f"validation text each",
    )
    yield "Model", f"{train['parameters'] / 1e6:.1f} M parameters"
    yield (
        "Training",
        f"{train['steps']:,} steps over {train['tokens'] / 1e6:.2f} M tokens (the text has "
        f"{packing['train_tokens'] / 1e6:.2f} M) in {format_seconds(train['seconds'])}: "
        f"{train['tokens_per_second']:,} tokens/s",
    )
    interval = ""
    if "bits_per_byte_low" in evaluate:
        interval = (
            f" ({evaluate['confidence']:.0%} interval {evaluate['bits_per_byte_low']:.3f} to "
            f"{evaluate['bits_per_byte_high']:.3f})"
        )
    yield "**Validation**", f"**{evaluate['bits_per_byte']:.3f} bits per byte**{interval}"
    yield (
        "Loss and perplexity",
        f"{evaluate['loss']:.3f} nats per token, {evaluate['perplexity']:.1f}",
    )
    yield (
        "Validation text that is in the training text too",
        f"{evaluate['leak_bytes_share']:.1%} of the bytes ({evaluate['leak_equal_documents']:,} "
        f"equal and {evaluate['leak_near_documents']:,} nearly equal documents)",
    )
    yield (
        "Training step, timed alone",
        f"{benchmark['training_step_ms']:.0f} ms, {benchmark['training_peak_share']:.0%} of the "
        f"machine's measured {benchmark['training_dtype']} matmul peak",
    )
    yield (
        "Generation, one prompt",
        f"{benchmark['generate_batch_1_tokens_per_second']:,.0f} tokens/s with the key-value "
        f"cache, {benchmark['generate_batch_1_uncached_tokens_per_second']:,.0f} without",
    )
    gpu = "" if benchmark["machine_gpu"] == "none" else f", {benchmark['machine_gpu']}"
    yield (
        "Machine",
        f"{benchmark['machine_cpu']}, {benchmark['machine_cores']} cores{gpu}; "
        f"torch {benchmark['machine_torch'].partition('+')[0]}, "
        f"Python {benchmark['machine_python']}",
    )


def megabytes(size: float) -> str:
    """Bytes in MB, two digits below 1."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e6:.2f} MB"


# --------------------------------------------------------------------------- growth


GROWTH = (
    ("parameters", "parameters", "seconds_per_token", 1e6, "µs a token", "memory_mb", "MB"),
    ("context", "context", "seconds_per_token", 1e6, "µs a token", "memory_mb", "MB"),
    ("corpus", "megabytes", "seconds", 1.0, "s", "memory_mb", "MB a process"),
    ("shards", "shards", "open_seconds", 1e3, "ms to open", "read_microseconds", "µs a row"),
)
"""Curve, what it grows with, and two figures: key, factor, unit; key, unit."""


def with_peers(text: str, results: Mapping[str, Any], tries: Mapping[str, Any]) -> str:
    """docs/performance.md with the tables of `make bench` and of the settings of the peers."""
    return replaced(replaced(text, "peers", peers(results)), "tries", peer_settings(tries))


def with_growth(text: str, results: Mapping[str, Any]) -> str:
    """docs/performance.md with the ends of each curve of `benchmarks.growth`, and its exponents."""
    lines = [
        "| Grows | from | to | Time | Exponent | Memory, or time to read | Exponent |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for curve, x, first, factor, unit, second, other in GROWTH:
        start, end = results["curves"][curve][0], results["curves"][curve][-1]
        exponents = results["exponents"][curve]
        lines.append(
            f"| {curve} | {start[x]:,} | {end[x]:,} "
            f"| {start[first] * factor:.3g} to {end[first] * factor:.3g} {unit} "
            f"| {exponents[first]:.2f} "
            f"| {start[second]:.3g} to {end[second]:.4g} {other} | {exponents[second]:.2f} |"
        )
    return replaced(text, "growth", "\n".join(lines))


def with_scale(text: str, results: Mapping[str, Any]) -> str:
    """docs/scale.md with the tables of `benchmarks.scale_model`, and what was measured beside."""
    for part, content in tables(results, *map(_if_there, MEASURED_SCALE)).items():
        text = replaced(text, part, content)
    return text


def _if_there(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


# --------------------------------------------------------------------------- soak


def with_soak(text: str, results: Mapping[str, Any]) -> str:
    """docs/reliability.md with what `make soak` counted, and where it fell short."""
    lines = ["| | Fault | Counted | Seconds |", "| --- | --- | --- | --- |"]
    for name, row in results["rows"].items():
        counters = dict(row["counters"])
        seconds = counters.pop("seconds")
        shown = "; ".join(f"{key.replace('_', ' ')}: {value:,}" for key, value in counters.items())
        short = "".join(f" **Fell short: {sentence}.**" for sentence in row["shortfalls"])
        lines.append(f"| {name} | {row['fault']} | {shown}{short} | {seconds:,} |")
    machine = results["machine"]
    lines += [
        "",
        f"`make soak` on {machine['cpu']}, {machine['cores']} cores ({machine['cpu_capability']}), "
        f"{machine['os']}; torch {machine['torch'].partition('+')[0]}, Python "
        f"{machine['python']}. One row: `make soak ONLY=P1`.",
    ]
    return replaced(text, "soak", "\n".join(lines))


# --------------------------------------------------------------------------- configuration


def with_configuration(text: str) -> str:
    """docs/configuration.md with a table for each section."""
    preset = read_config_file(ROOT / "configs" / "default.yaml")
    for name, cls in SECTIONS.items():
        text = replaced(text, name, field_table(cls, preset[name]))
    shared = {item.name for item in dataclasses.fields(SourceConfig)}
    own = {item.name for item in dataclasses.fields(DataConfig)} - shared
    return replaced(text, "library data", field_table(DataConfig, None, own))


def field_table(
    cls: type[Config], preset: Mapping[str, Any] | None, only: set[str] | None = None
) -> str:
    """The fields of a config class as a table; with the values of the default preset if given."""
    heads = ["Key", "Type", "Default of the class", "Meaning"]
    if preset is not None:
        heads.insert(3, "Default preset")
    rows = [heads, ["---"] * len(heads)]
    hints, meanings = get_type_hints(cls), field_docs(cls)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        if only is not None and item.name not in only:
            continue
        row = [f"`{item.name}`", type_name(hints[item.name]), shown(default(item)), ""]
        row[3] = " ".join(meanings[item.name].split()).replace("|", "\\|")
        if preset is not None:
            row.insert(3, shown(preset.get(item.name, MISSING)))
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def default(item: dataclasses.Field[Any]) -> Any:
    """The default of a field."""
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def shown(value: Any) -> str:
    """A value as YAML has it; a dash for one that is not there."""
    if value is MISSING:
        return "-"
    if isinstance(value, float) and value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"`{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}`"
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text.strip(chr(34)) if isinstance(value, str) else text}`"


def type_name(annotation: Any) -> str:
    """An annotation in words."""
    origin, arguments = getattr(annotation, "__origin__", None), getattr(annotation, "__args__", ())
    if annotation is type(None):
        return "null"
    if annotation.__class__.__name__ == "_LiteralGenericAlias":
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if arguments:  # a union
        return " or ".join(type_name(argument) for argument in arguments)
    return {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}[
        annotation.__name__
    ]


def field_docs(cls: type[Config]) -> dict[str, str]:
    """Field -> the string below it, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                found[statement.target.id] = str(following.value.value)
    return found


if __name__ == "__main__":
    sys.exit(main())
