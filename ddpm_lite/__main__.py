"""The command line: `python -m ddpm_lite <command> …`.

Each command is a module with `main(arguments, prog)`, imported only when it is called, so that
asking for help costs nothing and a machine without the book's tools can still use the others.
"""

import argparse
import importlib
import sys

COMMANDS = {  # name -> (module, what it does)
    "book": ("ddpm_lite.book.cli", "press, check, copy and open the book"),
}


def main(argv: list[str] | None = None) -> int:
    listing = "\n".join(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m ddpm_lite",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see `command --help`")
    given = parser.parse_args(argv)
    try:
        module = importlib.import_module(COMMANDS[given.command][0])
        return int(module.main(given.arguments, prog=f"{parser.prog} {given.command}"))
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "ddpm_lite":
            raise
        print(
            f"`{given.command}` needs {error.name}, which is not installed: "
            "pip install 'ddpm-lite[book]'",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
