"""The `lm` command: its table of commands, each imported when it is called, and the one place where errors are shown.

`lm --help` imports nothing but click: what takes time to import is imported by the command that needs it.
"""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from importlib import import_module

import click
from click.exceptions import NoArgsIsHelpError, NoSuchCommand

from cli import console
from cli.completing import complete_commands, register
from cli.errors import INTERRUPTED, Failure

COMMANDS = {
    "run": "Ask a model, or chat with it; it is brought in if need be",
    "pull": "Bring a model in, at the best level that this machine can hold",
    "search": "Search the hub for models",
    "fit": "Say which level of a model this machine can hold, before anything is downloaded",
    "list": "List the models that are here",
    "load": "Load models before anybody asks them",
    "unload": "Free the memory of models",
    "bench": "Measure how fast a model reads and writes here",
    "ps": "List the models that are loaded",
    "show": "Describe a model",
    "default": "Say which level the bare name of a model means",
    "create": "Make a model of another one, by a Modelfile",
    "cp": "Give a model a further name",
    "rm": "Remove models",
    "stop": "Pause pulls, unload models, or end the daemon",
    "launch": "Start a coding agent (claude, codex, opencode) with a model that is here",
    "key": "Make, list and revoke keys: who may do what with this daemon",
    "audit": "Show and check the record of who did what",
    "metrics": "Send samples of the metrics to a collector",
    "config": "Show and change settings, and say where each comes from",
    "serve": "Run the daemon in the foreground",
    "logs": "Show the daemon's log",
    "service": "Run the daemon as a service of systemd or launchd",
    "report": "Report models, licences, software, keys and weak settings",
    "bom": "Print a bill of materials of a model, or of the software",
    "doctor": "Check this machine and this installation",
    "quantize": "Make another level of a model, with errors weighed by what matters to it",
    "improve": "Make a better file of the same size, when the machine is idle, and serve it if it is better",
    "rollback": "Go back to the file that a model had before it was improved",
    "jobs": "Show what goes on or waits: pulls, and models that are improved",
    "quality": "Measure how far a model is from its original, and keep the figures with it",
    "tune": "Find the level of a model that meets goals on this machine, by measuring",
    "compress": "Make a model smaller or faster by whatever pays, measured beside lower levels",
    "compare": "Put two files of one model side by side",
    "sign": "Sign a model by a key",
    "verify": "Check the blobs and signatures of models, or compare a model with its original",
    "du": "Show what the models take of the disk",
    "prune": "Remove what nothing needs, from the disk or from a model",
    "push": "Send a model to a registry",
    "export": "Write models into one file, to carry them",
    "import": "Bring the models of such a file in",
    "sync": "Bring this box to a list of models",
    "login": "Log in at a registry of models",
    "logout": "Forget a login at a registry",
    "completion": "Print a script that completes commands and names in a shell",
}
ALIASES = {"ls": "list", "start": "serve"}
# Commands of Ollama that this version has not, and what does their work.
ABSENT = {
    "signin": "nothing here needs an account; HF_TOKEN and `lm login HOST` are for private models",
}
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 model not found, 4 daemon unreachable, 5 does not fit, 130 Ctrl-C."
)


class Commands(click.Group):
    """A group whose commands are the modules of `cli.commands`, named like them, each with an attribute `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name == "help":
            return _help
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"cli.commands.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table as it stands, so that help imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from server.config import VERSION

        console.out(f"lm {VERSION}")
        ctx.exit()


@click.group(
    cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.option(
    "-v",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def group(debug: bool) -> None:
    """Run open language models on this machine, quantized to fit it while they download."""


@click.command("help")
@click.argument("command", required=False, shell_complete=complete_commands)
def _help(command: str | None) -> None:
    """Show what `--help` shows, of lm or of a command."""
    group.main([command, "--help"] if command else ["--help"], "lm", standalone_mode=False)


def main() -> None:
    """Run a command, and end the process with its exit code."""
    console.prepare()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; its exit code. Errors are shown, not raised, unless `--debug` comes first."""
    debug = arguments[:1] == ["--debug"]
    register()
    try:
        if not arguments and console.at_terminal():
            from cli.overview import show

            show()
            return 0
        code = group.main(arguments, "lm", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        return _usage(error)
    except Failure as error:
        if debug:
            raise
        console.complain(str(error), error.hint)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.strerror:
            console.discard()
            console.complain(f"the system refused: {error.strerror.lower()}", error.filename or "")
            return 1
        console.complain(f"lm itself failed: {type(error).__name__}: {error}", "`lm --debug …` shows where")
        return 1


def _usage(error: click.ClickException) -> int:
    """Show a wrong use of the command line in our own form; its exit code."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return error.exit_code
    context = getattr(error, "ctx", None)
    close = getattr(error, "possibilities", None) or []
    if isinstance(error, NoSuchCommand):
        close = get_close_matches(error.command_name, [*COMMANDS, *ALIASES], 1)
    message = " ".join((error.message if close else error.format_message()).split()).rstrip(".")
    message = re.sub("'([^']*)'", r"`\1`", message)
    hint = f"did you mean `{close[0]}`?" if close else f"`{context.command_path if context else 'lm'} --help`"
    if isinstance(error, NoSuchCommand):
        hint = ABSENT.get(error.command_name, hint)
    console.complain(message[:1].lower() + message[1:], hint)
    return error.exit_code
