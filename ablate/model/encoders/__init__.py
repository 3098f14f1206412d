"""Vision encoders: what makes an image a grid of features.

timm is one family of encoders. A new one is one file in this folder with one decorator:

    from ablate.model.encoders import Tower, TowerSettings, register

    @register("my_encoder")
    class MyEncoder(Tower):
        def __init__(self, settings: TowerSettings, *, width: int = 64) -> None: ...
        def forward(self, images: Tensor) -> Tensor: ...

`encoder.family=[my_encoder]` chooses it; `python -m ablate.testing` tests it. Other packages offer theirs through the
entry-point group `ablate.encoders`, whose values name modules to import.
"""

from ablate.model.encoders.base import Preprocessing, Tower, TowerSettings, register, registry
from ablate.model.encoders.fused import EncoderConfig, VisionEncoder, check_encoder, create_encoder

__all__ = [
    "EncoderConfig",
    "Preprocessing",
    "Tower",
    "TowerSettings",
    "VisionEncoder",
    "check_encoder",
    "create_encoder",
    "register",
    "registry",
]
