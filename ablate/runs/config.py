"""All settings of one run: what `ablate train key=value ...` and the YAML files set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import connectors
from ablate.core.config import LATER
from ablate.core.errors import UserError
from ablate.core.fields import INT64, Count, CountOrZero, NotNegative, Positive32, Range, Share, check, check_ranges
from ablate.demo.config import DemoConfig
from ablate.model import ConnectorConfig, EncoderConfig, LanguageConfig, ModelConfig, recipe
from ablate.model.build import check_language, connector_fields
from ablate.model.encoders import check_encoder
from datamodules.config import DataConfig

Seed = Annotated[int, Range(0, INT64)]
Beta = Annotated[float, Range(0, below=1)]
Margin = Annotated[float, Range(above=0, below=100)]


@dataclass
class TrainConfig:
    """What trains, for how long, and how."""

    # A recipe (`ablate list recipes`). align: the connector alone learns. finetune: connector and language model. full:
    # the encoder too.
    stage: str = "finetune"
    # The recipe's own fields: fields.rates={language: 0.1} is a tenth of the learning rate for the language model.
    fields: dict[str, Any] = field(default_factory=dict, metadata=LATER)
    # A finished run's folder whose weights this run starts from (align, then finetune); empty = the config's own parts.
    start_from: str = ""
    # Passes over the data.
    epochs: Count = 1
    # Exactly so many optimizer steps, over as many passes as they take; null = what `epochs` give.
    max_steps: Count | None = None
    # Peak of the schedule: linear warm-up over warmup_ratio of all steps, then cosine to min_lr_ratio of the peak.
    learning_rate: NotNegative = 1e-3
    warmup_ratio: Share = 0.03
    min_lr_ratio: Share = 0.0
    # AdamW. Norms, biases and the scan's A_log, dt_bias and D are never decayed.
    weight_decay: NotNegative = 0.1
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    epsilon: Positive32 = 1e-8
    # Largest norm of the gradient of the mean loss; 0 = no clipping.
    clip_norm: NotNegative = 1.0
    # bfloat16: forward and backward under autocast; weights, optimizer and the scan's states stay float32.
    precision: Literal["float32", "bfloat16"] = "float32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    # Devices per node, the nodes, and how they work together.
    devices: Count = 1
    num_nodes: Count = 1
    strategy: Literal["auto", "ddp"] = "auto"
    # Optimizer steps between two checkpoints of which the last is kept; 0 = only when interrupted.
    checkpoint_every: CountOrZero = 200
    # Keep the last checkpoint, with the optimizer's state, when the run has finished.
    keep_checkpoint: bool = False
    # Stop when the loss stays above so many times its running median; 0 = only when it is not finite.
    divergence_factor: NotNegative = 5.0

    def __post_init__(self) -> None:
        check_ranges(self, "train")


@dataclass
class FeaturesConfig:
    """A frozen encoder's features can be computed once and read by every connector, seed and epoch."""

    # Only ever done for a frozen encoder, and left off, with a message, where it would not pay.
    cache: bool = True
    # Runs that will read these features, all together (a sweep's connectors times its seeds): whether computing them
    # once pays is judged for so many.
    runs: Count = 1
    # One folder inside it for each encoder and preprocessing.
    root: str = "data/features"
    # int8 is a quarter of float32, with a scale for every patch; its error is measured and shown.
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    # Images encoded at once.
    batch_size: Count = 32

    def __post_init__(self) -> None:
        check_ranges(self, "features")


@dataclass
class EvaluationConfig:
    """Which benchmarks score the run at its end."""

    # Names from `ablate.evaluation.benchmarks`; empty = none. textvqa_llava and textvqa_cobra are textvqa with LLaVA's
    # OCR words in the question.
    benchmarks: list[str] = field(default_factory=list)
    # The folder with one folder for each benchmark, in its official layout.
    root: str = ""
    batch_size: Count = 32
    # Processes that share the questions, each with a GPU of its own where there are GPUs. The files are the same.
    devices: Count = 1
    # As LLaVA-1.5, Cobra and ML-Mamba; the end token ends an answer before.
    max_new_tokens: Count = 128
    # What is asked: official, llava, cobra or bare (ablate/evaluation/prompts), or the path of a YAML file like those;
    # empty = official.
    prompt: str = ""
    # How benchmarks with choices, such as POPE and VSR, are answered: likelihood (the most likely choice) or generate
    # (text); empty = each benchmark's default. Benchmarks that offer one way only are answered in that way.
    answering: str = ""
    # Whose scorer to follow, by benchmark: modes.vqav2=official_2021; a benchmark that is not named has its default.
    modes: dict[str, str] = field(default_factory=dict)
    # Leave out questions whose image is missing (the score is then marked partial), instead of refusing.
    partial: bool = False
    # Only the first so many questions of each benchmark (the score is then marked partial); null = all.
    limit: Count | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation")


@dataclass
class LoggerConfig:
    """Weights & Biases. The run folder has the same numbers, and more."""

    # auto: online if a server answers, else offline.
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "ablate"
    # null = the account's default.
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """One run: a model, its data, its training and its evaluation."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    # A tokenizers JSON file.
    tokenizer: str = ""
    # The demo dataset to make, unless it is there; null = the data is one's own.
    demo: DemoConfig | None = None
    demo_root: str = "data/demo"
    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    # Initial weights, data order and noise.
    seed: Seed = 0
    # Put zeros at the visual tokens' places: what can be answered without seeing the image.
    blind: bool = False
    # Runs are written to <root>/<group>/<name>-<digest>/.
    root: str = "runs"
    group: str = "default"
    # Empty = <connector>-s<seed>, with -blind.
    name: str = ""
    # Percentage points within which the table of this group calls two connectors equal; null = nothing is called equal.
    # It changes nothing in a run, which keeps it, to show that it was chosen before.
    margin: Margin | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        # Here, before anything is downloaded or trained.
        connectors.check(self.connector.name, connector_fields(self.connector))
        self._read_connector_fields()
        self.language.fields = _plain(check_language(self.language))
        for key, value in (("group", self.group), ("name", self.name or "-")):
            if not re.fullmatch(r"[\w=+-][\w.=+-]*", value):
                raise UserError(f'{key} is "{value}": it names a folder, so use letters, digits and . _ - + = only.')
        self.encoder.fields = [_plain(fields) for fields in check_encoder(self.encoder)]
        self._check_recipe()

    def require_data(self) -> None:
        """Raise UserError for the first required setting that has no value: nothing defaults to the demo."""
        _ = self.data.all_sources
        needed = {
            "encoder.names": (self.encoder.names, "models of timm, such as [vit_base_patch16_siglip_384.webli]"),
            "tokenizer": (self.tokenizer, "a tokenizer.json"),
            "evaluation.root": (
                self.evaluation.root or not self.evaluation.benchmarks,
                "the folder that has a folder for each of evaluation.benchmarks",
            ),
        }
        for key, (value, what) in needed.items():
            if not value:
                raise UserError(f"{key} is not set: give {what}; or take the demo's settings with --config demo.")

    @property
    def may_cache_features(self) -> bool:
        """Only a frozen encoder's features stay what they are."""
        return self.features.cache and self.encoder.frozen

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(self.encoder, self.connector, self.language, blind=self.blind)

    def _check_recipe(self) -> None:
        stage, trains = self.train.stage, recipe.registry.get(self.train.stage).trains
        self.train.fields = _plain(recipe.check(stage, self.train.fields))
        recipe.create(stage, **self.train.fields)
        if "encoder" in trains and self.encoder.frozen:
            raise UserError(f"train.stage={stage} trains the encoder: set encoder.frozen=false.")
        if "encoder" not in trains and not self.encoder.frozen:
            raise UserError(f"train.stage={stage} leaves the encoder as it is: set encoder.frozen=true.")

    def _read_connector_fields(self) -> None:
        """Files and command lines give texts; their types are declared by the connectors."""
        name, config = self.connector.name, self.connector
        # Shared fields may be those of other connectors.
        kinds = [*(each for each in connectors.names() if each != name), name]
        hints = {key: hint for each in kinds for key, (hint, _) in connectors.signature(each).hints.items()}
        for fields in (config.fields, config.shared):
            for key, value in fields.items():
                fields[key] = _as_list(check(f'Connector "{name}", field "{key}"', value, hints[key]))


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _as_list(value) for key, value in fields.items()}


def _as_list(value: Any) -> Any:
    """As files have it, which know no tuples."""
    return [_as_list(item) for item in value] if isinstance(value, tuple) else value
