"""The `sctok` command: mounts one file per command and turns errors into one line."""

import os
import signal
import sys
from typing import Annotated, Any

import typer

from sctok import __version__
from sctok.cli.shared.command import mount
from sctok.cli.shared.terminal import StartsOver, say, show_library_messages, visible

from .cluster import cluster
from .decode import decode
from .demo import demo
from .doctor import doctor
from .encode import encode
from .evaluate import evaluate
from .export import export
from .extract import extract
from .import_checkpoint import import_checkpoint
from .inspect import inspect
from .merge import merge
from .plan import plan
from .pretrain import pretrain
from .probe import probe
from .reconstruct import reconstruct
from .report import report
from .tokenize import tokenize
from .train import train
from .verify import verify

SUMMARY = "Turn audio into discrete tokens with AudioMAE features and k-means codebooks, and tokens back into sound."
INTERRUPTED = 128 + signal.SIGINT
# ClickException: of the click package, or of the copy that newer versions of typer carry instead.
CLICK_EXCEPTION: Any = typer.BadParameter.mro()[2]

app = typer.Typer(
    name="sctok",
    help=SUMMARY,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sctok {__version__}")
        raise typer.Exit


@app.callback(
    help=SUMMARY, epilog="Start with sctok demo. Add --debug to any command to see the traceback of an error."
)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options of sctok itself."""


for each in (
    demo,
    doctor,
    inspect,
    extract,
    cluster,
    merge,
    tokenize,
    plan,
    train,
    import_checkpoint,
    encode,
    decode,
    reconstruct,
    export,
    verify,
    evaluate,
    probe,
    report,
):
    mount(app, each)
app.add_typer(pretrain, name="pretrain")


def main(arguments: list[str] | None = None) -> int:
    """Run `sctok` and return its exit code: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or bool(os.environ.get("SCTOK_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    show_library_messages()
    try:
        code = app(arguments, prog_name="sctok", standalone_mode=False)
    except CLICK_EXCEPTION as error:
        error.message = visible(error.message)
        error.show()
        return int(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except StartsOver as error:
        say(f"interrupted: {error}")
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except (ValueError, OSError, ImportError, MemoryError, RecursionError) as error:
        if debug:
            raise
        say(f"error: {_one_line(error)}")
        return 1
    if code == INTERRUPTED:  # newer typer turns Ctrl-C into this code itself
        say("interrupted: finished work is kept; run the same command to resume")
    return code if isinstance(code, int) else 0


def _one_line(error: BaseException) -> str:
    """Return an error's message without line breaks; operating system errors name their file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
