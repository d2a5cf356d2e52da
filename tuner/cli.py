"""The command line: its verbs, and what becomes of errors.

Exit codes: 0 done; 1 ran, but the answer is no; 2 bad input or a machine out of reach; 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from itertools import pairwise
from typing import Annotated

import typer

from tuner import (
    cli_calibrate,
    cli_explain,
    cli_export,
    cli_known,
    cli_logs,
    cli_papers,
    cli_price,
    cli_simulate,
    cli_study,
    cli_validate,
)
from tuner.cli_output import ReaderLeft, tell

DONE, ANSWER_IS_NO, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

app = typer.Typer(
    name="meshtune",
    help="Finds, explains and proves the fastest way to lay a large transformer out over many accelerators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PRICE, STUDY, LOGS, KNOWN = "Price plans", "Studies", "Logs", "What is known"
for _panel, _verbs in {
    PRICE: (
        cli_price.rank,
        cli_price.estimate,
        cli_simulate.simulate,
        cli_validate.validate,
        cli_calibrate.calibrate,
    ),
    STUDY: (
        cli_study.tune,
        cli_study.resume,
        cli_study.studies,
        cli_study.show,
        cli_study.report,
        cli_explain.explain,
        cli_export.export,
    ),
    LOGS: (cli_logs.read_log,),
    KNOWN: (cli_known.models, cli_known.clusters, cli_known.launchers, cli_papers.papers),
}.items():
    for _verb in _verbs:
        app.command(rich_help_panel=_panel)(_verb)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"meshtune {version_of('meshtune')}")
        raise typer.Exit


@app.callback()
def _meshtune(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None: ...


def run(arguments: Sequence[str]) -> int:
    """Run one command and answer its exit code; every expected error becomes its sentence on stderr."""
    try:
        code = app(args=list(arguments), standalone_mode=False)
    except typer.TyperException as error:
        _show_usage_error(error, arguments)
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        tell("interrupted")
        return INTERRUPTED
    except Exception as error:
        # Loaded only now: the package of the errors brings NumPy, which --help can do without.
        from search_spaces.errors import MeshtuneError, NothingFits

        if not isinstance(error, MeshtuneError):
            raise
        tell(f"error: {error}")
        return ANSWER_IS_NO if isinstance(error, NothingFits) else BAD_INPUT
    return code if isinstance(code, int) else DONE


def _show_usage_error(error: typer.TyperException, arguments: Sequence[str]) -> None:
    near = getattr(error, "possibilities", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        tell(str(error))
        return
    tell(f"error: {error.message if near else error.format_message()}{_given(error, arguments)}")
    if near:
        tell(f"hint: did you mean {sorted(near)[0]!r}?")
    else:
        context = getattr(error, "ctx", None)
        tell(f"hint: see {context.command_path if context else 'meshtune'} --help")


def _given(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """What followed the flag whose value is refused: typer's own sentences leave it out."""
    words = [part for word in arguments for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    flags = getattr(getattr(error, "param", None), "opts", ())
    values = [value for flag, value in pairwise(words) if flag in flags]
    return f"; got {values[-1]!r}." if values else ""


def main() -> None:
    """The console script."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except (ReaderLeft, BrokenPipeError):
        # Without this Python complains once more at exit, when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except OSError as error:  # a full disk under standard output
        tell(
            f"error: what is printed must be written somewhere; got {(error.strerror or str(error)).lower()}."
        )
        os._exit(BAD_INPUT)
    sys.exit(code)
