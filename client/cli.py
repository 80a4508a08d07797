"""The `tid` command. Each command's code is loaded when it runs, so that `tid --help` answers at once."""

import os
import sys
from typing import Annotated

import typer

from client.commands import (
    control,
    datasets,
    doctor,
    examples,
    explain,
    files,
    import_weights,
    jobs,
    keys,
    local,
    recipes,
    submit,
    sweeps,
    upkeep,
    watch,
    workers,
)
from client.console import FAILED, INTERRUPTED, NO_SERVER, complain

app = typer.Typer(
    name="tid",
    help="Distil an object detector as a job: submit a teacher, a student and a dataset; watch mAP; get the student.",
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong command line, 3 no server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import platform

        from tid_core.version import described

        typer.echo(f"tid {described()}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def options(
    url: Annotated[str | None, typer.Option("--url", help="The server; also TID_URL.")] = None,
    key_file: Annotated[
        str | None, typer.Option("--key-file", help="File that holds the API key; also TID_API_KEY_FILE, TID_API_KEY.")
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print version, revision and Python, and leave."
        ),
    ] = False,
) -> None:
    if url is not None:
        os.environ["TID_URL"] = url
    if key_file is not None:
        os.environ.pop("TID_API_KEY", None)
        os.environ["TID_API_KEY_FILE"] = key_file


for module in (
    local,
    submit,
    watch,
    jobs,
    control,
    files,
    explain,
    recipes,
    import_weights,
    keys,
    upkeep,
    examples,
    doctor,
):
    module.register(app)
app.add_typer(datasets.app, name="datasets")
app.add_typer(sweeps.app, name="sweep")
app.add_typer(keys.app, name="keys")
app.add_typer(workers.app, name="workers")


def main() -> None:
    """Run a command; what the user can act on is one red line, never a traceback."""
    from client.errors import ClientError, EmbeddedError, ServerUnreachable

    try:
        app()
    except ServerUnreachable as error:
        complain(str(error))
        sys.exit(NO_SERVER)
    except (ClientError, EmbeddedError) as error:
        complain(str(error))
        sys.exit(FAILED)
    except BrokenPipeError:  # the reader of the output has left, e.g. `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:  # a file or folder that the user named
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
