"""The demo's six tasks: own sets in the official layouts, for the same readers and scorers."""

from ablate.evaluation.benchmarks import benchmark
from ablate.evaluation.benchmarks.gqa import GQA
from ablate.evaluation.benchmarks.pope import POPE
from ablate.evaluation.benchmarks.textvqa import TextVQA
from ablate.evaluation.benchmarks.vizwiz import VizWiz
from ablate.evaluation.benchmarks.vqav2 import VQAv2
from ablate.evaluation.benchmarks.vsr import VSR


@benchmark("demo_vqa")
class DemoVQAv2(VQAv2):
    official_questions = official_images = None  # type: ignore[assignment]


@benchmark("demo_gqa")
class DemoGQA(GQA):
    official_questions = official_images = None  # type: ignore[assignment]


@benchmark("demo_textvqa")
class DemoTextVQA(TextVQA):
    official_questions = official_images = None  # type: ignore[assignment]


@benchmark("demo_pope")
class DemoPOPE(POPE):
    official_questions = official_images = None  # type: ignore[assignment]


@benchmark("demo_vizwiz")
class DemoVizWiz(VizWiz):
    official_questions = official_images = None  # type: ignore[assignment]


@benchmark("demo_vsr")
class DemoVSR(VSR):
    official_questions = official_images = None  # type: ignore[assignment]
