"""Train a connector (and the language model after it), evaluate it, write its run folder.

A finished run is skipped, an interrupted one continues. For example:

  ablate train --config demo connector.name=msc_csm seed=1
  ablate train --config demo --print-config
"""

import argparse
from pathlib import Path

from ablate.cli.configs import add_config_arguments, load_run_config

HELP = "train and evaluate one run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="train a finished run again if its connector's source has changed; the old folder is kept, renamed",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help="begin with this checkpoint, which a Lightning Trainer of your own wrote with VLMModule under the same "
        "settings (default: none)",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as YAML and stop")


def run(arguments: argparse.Namespace) -> int:
    config = load_run_config(arguments)
    if arguments.print_config:
        from ablate.core.config import to_yaml

        print(to_yaml(config), end="")
        return 0

    from ablate.api.training import train

    print(train(config, rerun=arguments.rerun, checkpoint=arguments.checkpoint))
    return 0
