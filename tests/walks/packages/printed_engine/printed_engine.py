"""An engine that prints the command of each run that is left, for a queue of one's own."""

from ablate.sweeps.engines import ELSEWHERE, OK, Engine, Work, register


@register("printed")
class Printed(Engine):
    """Prints the command of each run that is left.

    Args:
        before: what stands before each command, such as "qsub".
    """

    def __init__(self, *, before: str = "") -> None:
        super().__init__()
        self.before = before

    def run(self, work: Work) -> int:
        left = work.unfinished()
        for run in left:
            print(self.before, *work.launcher, *run.arguments)
        return ELSEWHERE if left else OK
