"""Connectors: what stands between a vision encoder and a language model.

    connectors.names()                                  every connector there is
    connectors.describe("msc_csm")                      its fields, their types and defaults
    connectors.create("msc_csm", 2176, 2560, depth=2)   a module: (b, h, w, 2176) -> (b, tokens, 2560)

A new connector is one file in this folder with one decorator:

    from connectors import Connector, register

    @register("my_connector")
    class MyConnector(Connector):
        def __init__(self, in_dim: int, out_dim: int, *, width: int = 256) -> None: ...
        def forward(self, features: Tensor) -> Tensor: ...

It is then known to the sweeps, the tests and `ablate connectors`; `Connector` says what more it can declare: to read
the question or each tower, to offer several sizes, to return losses. Other packages offer theirs through the
entry-point group `ablate.connectors`, whose values name modules to import.
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
