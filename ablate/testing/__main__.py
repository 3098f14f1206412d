"""`python -m ablate.testing PACKAGE`: does what a package registers keep the contracts? Exit status 1 if not."""

from __future__ import annotations

import argparse
import sys
import traceback

from ablate.core.errors import UserError
from ablate.testing.suite import Case, cases, members, suites


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ablate.testing", description=__doc__)
    parser.add_argument("package", help="the import name of the package or module, such as connectors.my_connector")
    parser.add_argument("--traceback", action="store_true", help="show where a check failed")
    arguments = parser.parse_args(argv)
    found = [(suite, name) for suite in suites() for name in members(suite, arguments.package)]
    if not found:
        print(
            f'error: "{arguments.package}" registers nothing. A file in this project is named by its module, such as '
            "connectors.my_connector. A package must be installed, with an entry point for its module in one of the "
            f"groups {', '.join(suite.registry.group for suite in suites())}.",
            file=sys.stderr,
        )
        return 2
    results = [_run(case, arguments.traceback) for suite, name in found for case in _cases(suite, name)]
    failed = results.count(False)
    print(f"{len(results)} checks, {failed or 'none'} failed: {', '.join(f'{s.registry.kind} {n}' for s, n in found)}")
    return 1 if failed else 0


def _cases(suite, name: str) -> list[Case]:
    try:
        return list(cases(suite, name))
    except Exception as error:  # a member that cannot even be built fails one check
        failure = error

    def can_be_built(subject: None) -> None:
        raise failure

    return [Case(suite.registry.kind, name, "", can_be_built, None)]


def _run(case: Case, show_traceback: bool) -> bool:
    try:
        case.check(case.subject)
    except Exception as error:
        said = str(error) if isinstance(error, (AssertionError, UserError)) else f"{type(error).__name__}: {error}"
        print(f"FAILED  {case}: {said or 'assertion failed; --traceback shows where'}")
        if show_traceback:
            traceback.print_exc()
        return False
    print(f"ok      {case}")
    return True


if __name__ == "__main__":
    sys.exit(main())
