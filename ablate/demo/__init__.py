"""The demo dataset: small, made of real photos, with exact answers, in the official layouts of six benchmarks.

catalogue.py    which photos are which object; what is kept for testing
parts.py        download and check the real parts; licences.py, rcc.py read them; shapes.py does without
scenes.py       put objects on backgrounds, and draw
questions.py    what is asked, and the conversations to train on
evalsets.py     the six balanced test sets and their files
build.py        build_demo: all of it, into one folder
"""

from ablate.demo.config import TASKS, DemoConfig, DemoPaths

__all__ = ["TASKS", "DemoConfig", "DemoPaths", "build_demo"]


def __getattr__(name: str):
    # Building needs Pillow, SciPy and the shard writer; knowing the names and settings does not.
    if name == "build_demo":
        from ablate.demo.build import build_demo

        return build_demo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
