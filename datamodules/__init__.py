"""LLaVA-style conversations from WebDataset shards, as batches for a vision-language model.

    llava.py     LlavaDataModule: all of the below as a LightningDataModule
    config.py    its settings
    text/        a record and a prompt template -> token ids and labels
    shards/      shards made, checked, indexed, read and fetched: <key>.json + <key>.jpg in tar files with an index.json
    order/       which samples make which batch, from seed and epoch alone: mixtures, packing, lengths, validation split
    batches/     samples -> the batch dictionary that the model takes, with a position that can be saved and restored
    images/      decoding, damage checks, cached features of a frozen encoder
    errors.py    samples and shards that cannot be used

This package does not depend on any model: `LlavaDataModule.connect` passes the tokenizer and the image transforms in.
"""

# Marks the positions of visual tokens in `input_ids` (LLaVA's value). Negative, so that no tokenizer can produce it.
IMAGE_TOKEN_ID = -200
# Marks positions without a loss in `labels` (the default `ignore_index` of PyTorch's cross entropy).
IGNORE_INDEX = -100
