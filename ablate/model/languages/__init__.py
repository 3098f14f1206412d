"""Language models: what reads the visual tokens and the text, and answers.

A new one is one file in this folder with one decorator:

    from ablate.model.languages import LanguageModel, LanguageSizes, register

    @register("my_model")
    class MyModel(LanguageModel):
        def __init__(self, config: LanguageSizes, *, heads: int = 4) -> None: ...

`language.name=my_model` chooses it, `language.fields.heads=8` sets its fields, and
`ablate.testing.languages.check_language_model` tests it. Other packages offer theirs through the entry-point group
`ablate.languages`, whose values name modules to import.
"""

from ablate.model.languages.base import LanguageModel, LanguageSizes, register, registry

names = registry.names
describe = registry.describe
check = registry.check

__all__ = ["LanguageModel", "LanguageSizes", "check", "describe", "names", "register", "registry"]
