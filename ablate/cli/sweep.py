"""Run a sweep, on this machine or another engine, and print its ablation table.

Finished runs are skipped, interrupted ones continue. The exit status is 0 if all are finished, 1 if one has failed, 4
if other machines still have some, 128 + the signal if it was interrupted. The same file serves `wandb sweep FILE` and
its agents.

  ablate sweep demo --connector msc_csm
  ablate sweep demo --shard 0/4            a quarter of the runs; other machines take 1/4, 2/4, 3/4
  ablate sweep my_sweep.yaml --jobs 2 train.learning_rate=1e-3
  ablate sweep my_sweep.yaml --engine slurm --jobs 8 engine.time=04:00:00 engine.partition=gpu
  ablate sweep demo --dry-run seed=0,1 train.learning_rate=5e-4,1e-3
"""

import argparse

from ablate.api.settings import find_experiment
from ablate.cli.configs import add_overrides

HELP = "run a sweep and print its table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", help="a sweep file, or the name of one in experiments/sweeps/")
    add_overrides(parser)
    parser.add_argument(
        "--connector",
        default="",
        metavar="A,B",
        help='only these, or "all" (default: those of the file)',
    )
    parser.add_argument(
        "--shard", default="", metavar="i/N", help="the i-th of N parts of the runs, from 0 (default: all)"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at the same time (default: here 1)")
    parser.add_argument(
        "--engine",
        default="local",
        metavar="NAME",
        help="what runs it: local, slurm, wandb, one of another package, or a YAML file with name: and options",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of each process of a run (default: those that the sweep's first runs had, else OMP_NUM_THREADS, else "
        "the engine's choice)",
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="NAME",
        help="the row to compare with (default: that whose settings most rows share)",
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="run finished runs again whose connector's source has changed; the old folders are kept, renamed",
    )
    parser.add_argument("--only-failed", action="store_true", help="of the runs, only those that have failed")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their states, and run nothing")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="try a run again up to N times that a signal has ended, or for which memory was too small",
    )
    parser.add_argument("--wait", action="store_true", help="wait for the runs that other machines have")
    parser.add_argument("--stop", action="store_true", help="ask the runs, here or in a queue, to save and stop")
    parser.add_argument("--root", metavar="DIR", help="where runs are written (default: the config's, runs/)")


def run(arguments: argparse.Namespace) -> int:
    from ablate.pipeline.demo import prepare_demo
    from ablate.sweeps import run_sweep, stop_sweep

    only = [name.strip() for name in arguments.connector.split(",") if name.strip()]
    path = find_experiment(arguments.sweep, "sweeps")
    if arguments.stop:
        return stop_sweep(path, only, arguments.overrides, arguments.root)
    return run_sweep(
        path,
        only,
        arguments.shard,
        arguments.jobs,
        arguments.overrides,
        arguments.root,
        engine=arguments.engine,
        threads=arguments.threads,
        baseline=arguments.baseline,
        rerun=arguments.rerun,
        only_failed=arguments.only_failed,
        dry_run=arguments.dry_run,
        retries=arguments.retries,
        wait=arguments.wait,
        prepare=prepare_demo,
    )
