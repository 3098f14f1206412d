"""`ablate data shard`, `ablate data check DIR` and `ablate data show DIR`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.cli.configs import add_config_arguments, load_run_config
from ablate.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from datamodules.shards.make import Made, Progress
    from datamodules.shards.show import Shown, Span

SHARD_HELP = "make shards from LLaVA's annotation files and a folder of images"
SHOW_HELP = "print and draw samples: tokens, what is learned of them, the image with its grid"
INTERRUPTED = 130


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--annotations", type=Path, action="extend", nargs="+", required=True, metavar="FILE",
        help="a JSON array or JSON Lines of LLaVA records; several are read one after the other",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, required=True, metavar="ROOT", help="the folder that the records' image paths start from"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the shards")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one for each core)")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="at most")
    parser.add_argument(
        "--max-shard-bytes", type=int, default=1 << 30, metavar="N", help="of the original files (default: 2**30)"
    )
    parser.add_argument(
        "--resize", default="", metavar="RULE",
        help="shortest=384 or longest=672,quality=95: larger images become so small (default: every image bit for bit)",
    )  # fmt: skip
    parser.add_argument("--convert-gif", action="store_true", help="keep the first frame of GIFs, as PNG")
    parser.add_argument("--decode", action="store_true", help="decode every image: finds damage in their middle too")
    parser.add_argument("--follow-links", action="store_true", help="allow links that lead out of ROOT")
    parser.add_argument("--drop-repeated", action="store_true", help="leave out entries that came before, to the byte")


def shard(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from datamodules.images.decode import Resize
    from datamodules.shards.make import ShardSettings, make_shards

    settings = ShardSettings(
        annotations=tuple(arguments.annotations),
        images=arguments.images,
        samples_per_shard=arguments.samples_per_shard,
        max_shard_bytes=arguments.max_shard_bytes,
        resize=Resize.parse(arguments.resize) if arguments.resize else None,
        convert_gif=arguments.convert_gif,
        decode=arguments.decode,
        follow_links=arguments.follow_links,
        drop_repeated=arguments.drop_repeated,
    )
    bars = _Bars(Console(stderr=True))
    try:
        made = make_shards(settings, arguments.out, workers=_workers(arguments.workers), progress=bars.of_sharding)
    except KeyboardInterrupt:
        bars.close()
        out = arguments.out
        print(
            f"\nStopped. Finished shards are kept in {out.with_name(f'{out.name}.partial')}; "
            "the same command continues with the rest.",
            file=sys.stderr,
        )
        return INTERRUPTED
    finally:
        bars.close()
    _print_made(made)
    return 0


def _print_made(made: "Made") -> None:
    from datamodules.shards.make import KINDS, REPORT_NAME

    found = f" ({made.found:,} were there already)" if made.found else ""
    print(f"{made.folder}: {made.shards:,} shards{found}, {made.bytes / 1e6:,.1f} MB")
    print(f"{made.samples:,} samples of {made.entries:,} entries, {made.text_only:,} entries text only")
    if made.counts:
        print(f"{made.dropped:,} left out. {made.folder / REPORT_NAME} names each entry:")
        for kind, count in sorted(made.counts.items(), key=lambda item: -item[1]):
            print(f"  {count:>9,}  {kind:<17} {KINDS[kind]}")
    print(f"Train on them with data.shards=[{made.folder}]; look at them with: ablate data show {made.folder}")


def check(
    *paths: str, as_json: bool = False, fast: bool = False, workers: int = 0, ignore_suffixes: Sequence[str] = ()
) -> int:
    """Check folders of shards, .tar files, URLs or patterns of either; 1 if anything is wrong with them."""
    from rich.console import Console

    from datamodules.config import DataConfig
    from datamodules.shards.check import check_shards
    from datamodules.shards.index import describe_unread
    from datamodules.shards.remote import ShardCache

    cache = ShardCache(Path(DataConfig().cache_dir) / "shards")
    path = " ".join(paths)
    bars = _Bars(Console(stderr=True, quiet=as_json))
    try:
        report = check_shards(
            *paths, fast=fast, workers=_workers(workers), cache=cache, ignore_suffixes=ignore_suffixes,
            progress=lambda done, total: bars.update("check", done, total),
        )  # fmt: skip
    finally:
        bars.close()
    if as_json:
        print(json.dumps({"path": path, "fast": fast, **dataclasses.asdict(report)}, indent=1))
        return 1 if report.problems else 0
    for problem in report.problems:
        place = " ".join(ascii(part)[1:-1] for part in (problem.shard, problem.entry) if part) or path
        print(f"{place}: {problem.what}")
    if not report.indexed:
        print("No usable index.json: there were no checksums to compare with.")
    if report.unread:
        print(f"Members that are not read: {describe_unread(report.unread)}")
    verdict = f"{len(report.problems):,} problems" if report.problems else "no problem found"
    looked = "checksums only" if fast and report.indexed else "every member, conversation and image"
    print(
        f"{path}: {report.shards:,} shards, {report.samples:,} samples, {report.images:,} images "
        f"({looked}): {verdict}"
    )  # fmt: skip
    return 1 if report.problems else 0


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DIR", help="a folder of shards, or one .tar file: a path or a URL")
    parser.add_argument("--n", type=int, default=8, metavar="N", help="samples, evenly spread")
    parser.add_argument("--index", default="", metavar="I,J", help="samples by number, from 0 (default: --n of them)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="draw them into this picture (default: none)")
    add_config_arguments(parser)


def show(arguments: argparse.Namespace) -> int:
    """Samples as the config's model gets them. The encoder's weights are not needed, and not read."""
    from rich.console import Console

    from ablate.model.build import create_connector
    from ablate.model.encoders import create_encoder
    from connectors import tokens_per_image
    from datamodules.errors import BadSample
    from datamodules.shards.reader import ShardSet
    from datamodules.shards.remote import ShardCache
    from datamodules.shards.show import contact_sheet
    from datamodules.text.conversation import ConversationEncoder
    from datamodules.text.tokenizer import Tokenizer

    arguments.config = arguments.config or ["demo"]
    config = load_run_config(arguments)
    tokenizer = Tokenizer.from_file(config.tokenizer)
    cache = ShardCache(Path(config.data.cache_dir) / "shards", config.data.cache_bytes, config.data.allow_pipe)
    shards = ShardSet.open([arguments.path], cache)
    chosen = _chosen(arguments, len(shards))
    config.encoder.weights = ["random"] * len(config.encoder.names)
    encoder = create_encoder(config.encoder)
    connector = create_connector(config.connector, encoder, 64)
    tokens = tokens_per_image(connector, *encoder.grid, config.connector.size)
    encode = ConversationEncoder(tokenizer, config.data.prompt_template, tokens, config.data.max_length)
    console = Console()
    samples, bad = [], 0
    for index in chosen:
        try:
            sample = _shown(shards, index, encode, encoder.transforms[0], config.data.max_image_pixels)
        except BadSample as error:
            bad += 1
            console.print(f"{index}  {error}\n", markup=False, highlight=False, style="red")
            continue
        samples.append(sample)
        _print_sample(console, index, sample, tokenizer)
    console.print(
        f"{len(samples)} of {len(shards):,} samples{f', and {bad} that cannot be used' if bad else ''}. "
        f"{'+'.join(config.encoder.names)}: {encoder.grid[0]} x {encoder.grid[1]} features, "
        f"{encode.num_visual_tokens} visual tokens.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(_legend(colour=_has_colour(console)), soft_wrap=True)
    if arguments.out and samples:
        from ablate.core.files import atomic_file

        with atomic_file(arguments.out) as file:
            contact_sheet(samples, encoder.grid).save(file, "PNG")
        console.print(f"Drawn in {arguments.out}", markup=False, highlight=False)
    return 1 if bad else 0


def _chosen(arguments: argparse.Namespace, total: int) -> list[int]:
    if not arguments.index:
        count = min(max(1, arguments.n), total)
        return [number * total // count for number in range(count)]
    parts = arguments.index.split(",")
    if not all(part.strip().isdigit() and int(part) < total for part in parts):
        raise UserError(f'--index is "{arguments.index}": expected numbers from 0 to {total - 1}, such as 0,17.')
    return [int(part) for part in parts]


def _shown(shards: Any, index: int, encode: Any, transform: Any, max_pixels: int) -> "Shown":
    from datamodules.images.decode import decode_image
    from datamodules.shards.show import Shown, unnormalised

    sample = shards.read(index)
    encoded = encode.encode(sample.record, has_image=sample.image is not None, key=sample.key)
    picture = None
    if sample.image is not None:
        seen = transform(decode_image(sample.image, key=sample.key, max_pixels=max_pixels))
        picture = unnormalised(seen, transform.settings["mean"], transform.settings["std"])
    return Shown(sample.key, sample.record, encoded, picture)


def _print_sample(console: "Console", index: int, sample: "Shown", tokenizer: Any) -> None:
    from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID
    from datamodules.shards.show import printable, spans

    encoded = sample.encoded
    learned = sum(label != IGNORE_INDEX for label in encoded.labels)
    visual = encoded.input_ids.count(IMAGE_TOKEN_ID)
    turns = len(sample.record["conversations"])
    image = f"image {sample.record['image']}" if sample.record.get("image") else "text only"
    cut = f", {encoded.cut} cut off" if encoded.cut else ""
    head = (
        f"{index}  {sample.key}  id {sample.record.get('id')}  {image}\n"
        f"{turns} turns, {len(encoded.input_ids)} tokens: {visual} visual, {learned} learned{cut}"
    )
    console.print(printable(head), markup=False, highlight=False, style="bold", soft_wrap=True)
    console.print(_as_text(list(spans(encoded, tokenizer)), colour=_has_colour(console)), soft_wrap=True)
    console.print()


def _as_text(pieces: "Sequence[Span]", *, colour: bool) -> "Text":
    """Tokens in alternating shades, learned ones on green; without colour, in between bars and learned in brackets."""
    from rich.text import Text

    shades = {True: ("black on green", "black on bright_green"), False: ("", "dim")}
    text = Text()
    for number, piece in enumerate(pieces):
        before = pieces[number - 1].learned if number else False
        shown = f"[{piece.tokens} visual tokens]" if piece.visual else piece.text.replace("\n", "⏎\n")
        if colour:
            text.append(shown, "black on cyan" if piece.visual else shades[piece.learned][number % 2])
            continue
        edge = {(False, True): "⟦", (True, False): "⟧"}.get((before, piece.learned), "│" if number else "")
        text.append(edge + shown)
    if not colour and pieces and pieces[-1].learned:
        text.append("⟧")
    return text


def _legend(*, colour: bool) -> "Text":
    from datamodules.shards.show import Span

    sample = [
        Span("The loss is taken on", 1, False),
        Span(" these", 1, True),
        Span(" tokens", 1, True),
        Span(".", 1, False),
    ]
    return _as_text(sample, colour=colour)


def _has_colour(console: "Console") -> bool:
    return console.color_system is not None and not console.no_color


def _workers(asked: int) -> int:
    from ablate.core.processes import cores

    if asked < 0:
        raise UserError(f"--workers is {asked}: expected 1 or more, or 0 for one process a core.")
    return asked or cores()


class _Bars:
    """How far each phase is, one after another."""

    def __init__(self, console: "Console"):
        from ablate.core.console import Phase, Reporter

        self._reporter = Reporter(None, console)
        self._phase: Phase | None = None

    def of_sharding(self, progress: "Progress") -> None:
        megabytes = 10**6 if progress.phase == "read" else 1
        name = {"read": "read annotations (MB)", "write": "write samples"}[progress.phase]
        self.update(name, progress.done // megabytes, progress.total // megabytes)

    def update(self, name: str, done: int, total: int) -> None:
        if self._phase is None or self._phase.name != name:
            self.close()
            self._phase = self._reporter.phase(name, total, done)
        self._phase.update(done, total)

    def close(self) -> None:
        if self._phase is not None:
            self._phase.close()
