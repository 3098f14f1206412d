"""Ask a trained run about your own picture.

ablate generate --run runs/demo/msc_csm-s0-1f2e3d4c --image photo.jpg --prompt "What is in the picture?"
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from ablate.core.errors import UserError
from ablate.core.fields import INT64, Count, NotNegative, Range, check
from ablate.core.scalars import Argument

HELP = "ask a trained run about your own picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, dest="run_folder", metavar="RUN", help="a run's folder")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture (default: none, only the prompt is used)")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to ask")
    parser.add_argument(
        "--max-new-tokens",
        type=_number("--max-new-tokens", Count),
        default=128,
        metavar="N",
        help="the longest answer, in tokens",
    )
    parser.add_argument(
        "--temperature",
        type=_number("--temperature", NotNegative),
        default=0.0,
        help="0: always the most likely token; above 0, tokens are drawn",
    )
    parser.add_argument(
        "--top-p",
        type=_number("--top-p", Annotated[float, Range(above=0, most=1)]),
        default=1.0,
        help="draw among the most likely tokens that together have this probability",
    )
    parser.add_argument(
        "--seed", type=_number("--seed", Annotated[int, Range(0, INT64)]), default=0, help="of the drawing"
    )


def _number(option: str, hint: Any) -> Callable[[str], Any]:
    """An argparse type that keeps to the range of the settings' types."""

    def read(text: str) -> Any:
        try:
            return check(option, Argument(text), hint)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def run(arguments: argparse.Namespace) -> int:
    from ablate.api.answering import load

    answer = load(arguments.run_folder).answer(
        arguments.image,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    print(answer)
    return 0
