"""`make bench`: run every bench_*.py beside this file, one after another, and keep what they print.

Each benchmark is a process of its own (peak memory is a property of a process) and measures ours beside a named
reference in the same run, so that its ratios hold on a noisy machine. The report goes to the terminal and to
bench-results/<date>.txt with the machine's description on top.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def machine() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = platform.processor() or platform.machine()
    return (
        f"{os.cpu_count()} cores ({processor}), {memory:.0f} GiB, {device}; "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="benchmarks to run, such as ssm or generation (default: all)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    arguments = parser.parse_args()

    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = sorted(set(arguments.names) - set(scripts))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; choices: {', '.join(scripts)}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    started = datetime.datetime.now().astimezone()
    report = arguments.out / f"{started:%Y-%m-%d-%H%M%S}.txt"
    failed = []
    with report.open("w") as file:

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=file, flush=True)

        say(f"{started:%Y-%m-%d %H:%M} on {machine()}")
        for name in arguments.names or scripts:
            say(f"\n== {name}")
            process = subprocess.Popen(
                [sys.executable, str(scripts[name])],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"BENCH_DEVICE": arguments.device},
            )
            for line in process.stdout:
                say(line.rstrip("\n"))
            if process.wait():
                failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    print(f"\nKept in {report}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
