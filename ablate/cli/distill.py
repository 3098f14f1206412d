"""Turn the attention layers of a trained run into Mamba-2 layers, in the three stages of mmMamba (arXiv 2502.13145).

Each stage is a run; finished ones are skipped, an interrupted one continues. For example:

  ablate distill --run runs/demo/mlp-s0-1f2e3d4c
  ablate distill --run TEACHER --layers attention+3*mmmamba stage3.train.epochs=2
  ablate distill --run TEACHER --stages 3 --seeding inherit train.epochs=3
"""

import argparse
from pathlib import Path

from ablate.cli.configs import add_overrides
from ablate.core.errors import UserError

HELP = "turn a run's attention layers into Mamba-2 layers (mmMamba)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", dest="teacher", type=Path, required=True, metavar="RUN", help="the teacher's folder")
    parser.add_argument(
        "--layers",
        default="mmmamba",
        metavar="PATTERN",
        help="as language.fields.layers: which layers are converted (default: mmmamba, all)",
    )
    parser.add_argument("--stages", default="1,2,3", metavar="A,B", help="some of 1, 2 and 3 (default: 1,2,3)")
    parser.add_argument(
        "--seeding",
        choices=("mimic", "inherit", "scratch"),
        default="mimic",
        help="initial values of the converted layers (default: mimic)",
    )
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    from ablate.api.distilling import distill

    stages = arguments.stages.split(",")
    if not all(stage.strip().isdecimal() for stage in stages):
        raise UserError(f"--stages is {arguments.stages}: expected numbers, such as 1,2,3.")
    print(
        distill(
            arguments.teacher,
            arguments.layers,
            *arguments.overrides,
            stages=[int(stage) for stage in stages],
            seeding=arguments.seeding,
        )
    )
    return 0
