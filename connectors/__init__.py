"""Connectors: the modules between a vision encoder and a language model.

    connectors.names()                                  all registered connectors
    connectors.describe("msc_csm")                      its fields, their types and defaults
    connectors.create("msc_csm", 2176, 2560, depth=2)   a module: (b, h, w, 2176) -> (b, tokens, 2560)

To add a connector, put one file with one decorator in this folder:

    from connectors import Connector, register

    @register("my_connector")
    class MyConnector(Connector):
        def __init__(self, in_dim: int, out_dim: int, *, width: int = 256) -> None: ...
        def forward(self, features: Tensor) -> Tensor: ...

It is then available to the sweeps, the tests and `ablate list connectors`. `Connector` documents what else it can
declare: reading the question or each tower, several sizes, its own losses. Other packages register their connectors
through the entry-point group `ablate.connectors`, whose values name modules to import.
"""

from ablate.core.fields import Field
from ablate.core.registry import Description
from connectors.contract import (
    Connector,
    FeatureMap,
    Features,
    Text,
    Tokens,
    apply,
    check,
    check_size,
    create,
    describe,
    names,
    register,
    signature,
    title,
    tokens_per_image,
)
from connectors.scan_orders import scan_order

__all__ = [
    "Connector",
    "Description",
    "FeatureMap",
    "Features",
    "Field",
    "Text",
    "Tokens",
    "apply",
    "check",
    "check_size",
    "create",
    "describe",
    "names",
    "register",
    "scan_order",
    "signature",
    "title",
    "tokens_per_image",
]
