"""The command line: `python -m ddpm_lite <command> …`.

Each command is a module with `main(arguments, prog)`, imported only when it is called, so that
asking for help costs nothing and a machine without the book's tools can still use the others.
"""

import argparse
import importlib
import sys

COMMANDS = {  # name -> (module, what it does, what to install for it)
    "train": ("ddpm_lite.commands.train", "train a model on digits or on your images", "ddpm-lite"),
    "sample": ("ddpm_lite.commands.sample", "draw images from a model", "ddpm-lite"),
    "evaluate": ("ddpm_lite.commands.evaluate", "measure a model against real images", "ddpm-lite"),
    "export": ("ddpm_lite.commands.export", "write a model for diffusers", "ddpm-lite"),
    "info": ("ddpm_lite.commands.info", "say what is in a model or a run", "ddpm-lite"),
    "book": ("ddpm_lite.book.cli", "press, check, copy and open the book", "ddpm-lite[book]"),
}


def main(argv: list[str] | None = None) -> int:
    listing = "\n".join(f"  {name:10} {what}" for name, (_, what, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m ddpm_lite",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see `command --help`")
    given = parser.parse_args(argv)
    name, _, package = COMMANDS[given.command]
    try:
        module = importlib.import_module(name)
        return int(module.main(given.arguments, prog=f"{parser.prog} {given.command}"))
    except ModuleNotFoundError as error:
        if error.name == "ddpm_lite.book":
            print("The students' edition of the library is without the book.", file=sys.stderr)
            return 2
        if not error.name or error.name.split(".")[0] == "ddpm_lite":
            raise
        print(
            f"`{given.command}` needs {error.name}, which is not installed: "
            f"pip install '{package}'",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
