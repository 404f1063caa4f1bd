"""The library from a terminal: train, sample, evaluate, export, info.

Each command is a module with `main(arguments, prog)`, which returns the exit code: 0 when all went
well, 1 when something failed on the way (a full disk, a loss that is no number), 2 for a request
that cannot be met, with one sentence that says why, 130 after Ctrl-C. A command's result is a file
that a person can look at and one that a program can read; each is there whole or not at all.
"""
