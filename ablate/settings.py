"""Which settings cannot change what a run computes: the same list for a run's identity and for the tables.

Two configs that differ in nothing else are the same run, and rows of a table that differ in nothing else are not told
apart. A key stands for its whole group too.
"""

NEUTRAL = (
    "root",
    "group",
    "name",
    "margin",
    "logger",
    "demo_root",
    "demo.num_workers",
    "features.root",
    "features.batch_size",
    "features.runs",
    "data.num_workers",
    "data.max_bad_share",
    "data.ignore_suffixes",
    "data.verify_checksums",
    "data.cache_dir",
    "data.cache_bytes",
    # Rounding and the draws of drop path aside: any number of ranks sees the same global batches.
    "data.micro_batch",
    "train.devices",
    "train.num_nodes",
    "train.strategy",
    "train.checkpoint_every",
    "train.keep_checkpoint",
    "evaluation.batch_size",
    "evaluation.devices",
)
