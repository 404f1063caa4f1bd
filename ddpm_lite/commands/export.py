"""`python -m ddpm_lite export`: a model in the form that another library reads."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from ddpm_lite.commands import common
from ddpm_lite.commands.common import Refused
from ddpm_lite.commands.recipe import CLIP
from ddpm_lite.interchange import to_diffusers

DESCRIPTION = """\
Write a model as a folder that diffusers loads:

  python -m ddpm_lite export --model digits --to diffusers --out digits-diffusers

  from diffusers import DDPMPipeline
  pipeline = DDPMPipeline.from_pretrained("digits-diffusers")
  images = pipeline(batch_size=16, num_inference_steps=1000).images

The other way round nothing need be done: --model of every command takes such a folder.
"""


def main(arguments: list[str], prog: str) -> int:
    return common.run(_parser(prog), arguments, _export)


def _parser(prog: str) -> common.Parser:
    parser = common.Parser(prog, "--model MODEL --to diffusers --out FOLDER", DESCRIPTION)
    common.add_model_option(parser)
    parser.add_argument("--to", required=True, choices=["diffusers"], help="the form to write")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the folder to write; a new name"
    )
    parser.add_argument(
        "--no-clip",
        action="store_true",
        help="tell diffusers not to clip the predicted image to [-1, 1] at each step",
    )
    return parser


def _export(given: argparse.Namespace) -> None:
    out: Path = given.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} is there already: name a new folder.")
    if not out.absolute().parent.is_dir():
        raise Refused(f"there is no folder {out.parent} to write {out.name} into.")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with common.refusing():
        model, _ = common.open_model(given.model)
    try:
        with common.refusing():  # what diffusers has no counterpart of, or a full disk
            clip = None if given.no_clip else CLIP
            to_diffusers(model.network, model.diffusion, partial, clip=clip)
        os.replace(partial, out)  # whole or not at all; an empty folder gives way
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {', '.join(sorted(str(p.relative_to(out)) for p in out.rglob('*.*')))}")
