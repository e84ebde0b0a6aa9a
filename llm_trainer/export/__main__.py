"""Export a trained model to the format of Hugging Face, or import one.

    python -m llm_trainer.export models/final out/
    python -m llm_trainer.export --from-huggingface some-model/ models/imported

Exit codes: 0 done, 2 wrong input or a failed proof, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys

from llm_trainer.exceptions import LLMTrainerError

EXIT_USER_ERROR = 2


def build_parser() -> argparse.ArgumentParser:
    """All arguments, each with its unit and default."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_trainer.export",
        description="Export a trained model to the format of Hugging Face, or import one, and "
        "prove that both compute the same.",
    )
    add = parser.add_argument
    add("source", help="model directory, such as models/final")
    add("out", help="directory to write: a new one, or one with an earlier result")
    add(
        "--from-huggingface", action="store_true",
        help="import: source is in the format of Hugging Face, out becomes a model of ours",
    )  # fmt: skip
    add("--no-verify", action="store_true", help="leave out the comparison with transformers")
    add("--without-tokenizer", action="store_true", help="the model alone")

    group = parser.add_argument_group("export")
    add = group.add_argument
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32)")
    add("--max-shard-size", metavar="SIZE", help="largest file of weights (default: 5GB)")
    add("--tokenizer", metavar="DIR", help="tokenizer directory; default: the one inside source")
    return parser


def run_export(arguments: argparse.Namespace) -> str:
    """Export as asked; returns what to tell."""
    from llm_trainer.export.huggingface import DEFAULT_SHARD, export_model

    made = export_model(
        arguments.source,
        arguments.out,
        dtype=arguments.dtype or "float32",
        max_shard_size=arguments.max_shard_size or DEFAULT_SHARD,
        verify=not arguments.no_verify,
        tokenizer_path=arguments.tokenizer,
        with_tokenizer=not arguments.without_tokenizer,
    )
    files = len(made.weight_files)
    return (
        f"{made.directory}: {made.architecture}, {made.num_parameters:,} parameters in {files} "
        f"{'file' if files == 1 else 'files'}; {made.parity.summary()}"
    )


def run_import(arguments: argparse.Namespace) -> str:
    """Import as asked; returns what to tell."""
    from llm_trainer.export.importing import import_model

    made = import_model(
        arguments.source,
        arguments.out,
        verify=not arguments.no_verify,
        with_tokenizer=not arguments.without_tokenizer,
    )
    return (
        f"{made.directory}: from {made.layout}, {made.num_parameters:,} parameters as float32; "
        f"{made.parity.summary()}"
    )


def main(argv: list[str] | None = None) -> int:
    """Parse, export or import, print; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    only_export = (arguments.dtype, arguments.max_shard_size, arguments.tokenizer)
    if arguments.from_huggingface and any(value is not None for value in only_export):
        parser.error("--dtype, --max-shard-size and --tokenizer are for an export")
    if arguments.tokenizer is not None and arguments.without_tokenizer:
        parser.error("--tokenizer and --without-tokenizer contradict each other")
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        print((run_import if arguments.from_huggingface else run_export)(arguments))
    except LLMTrainerError as error:
        print(f"error: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
