"""The stages of LLaVA (arXiv 2304.08485, section 4.2) and of ML-Mamba (arXiv 2407.19832, Table 1)."""

from ablate.model.recipe import Recipe, register


@register("align")
class Align(Recipe):
    """The connector alone learns."""

    trains = ("connector",)


@register("finetune")
class Finetune(Recipe):
    """Connector and language model learn."""

    trains = ("connector", "language")


@register("full")
class Full(Recipe):
    """Everything learns, the encoder too."""

    trains = ("encoder", "connector", "language")
