"""LLaVA-style conversations from WebDataset shards, as batches for a vision-language model.

    make_shards.py   LLaVA annotations and images -> shards, in several processes and any number of attempts
    check_shards.py  everything that is wrong with shards
    show.py          samples as a model gets them, as text and as a picture
    shards.py        write, check and read shards: <key>.json + <key>.jpg in tar files, described by index.json
    conversation.py  a record and a prompt template -> token ids and labels
    mixture.py       which samples an epoch takes of several sources
    plan.py          which samples make which batch, decided from seed and epoch alone
    collate.py       rows -> the batch dictionary that the model takes
    loader.py        the batches of one rank, with a place that can be saved and restored
    rejects.py       samples that were skipped: named in a file, and limited to a share
    packing.py       which samples share a row; token_counts.py: how long each is
    remote.py        shards that are far away: fetched, checked, kept in a bounded cache
    features.py      frozen vision features, encoded once and kept on disk
    llava.py         LlavaDataModule: all of the above behind Lightning's interface

This package knows no model: the tokenizer and the image transforms arrive through `LlavaDataModule.connect`.
"""

# Stands in `input_ids` where a visual token goes. Negative, so that no tokenizer can produce it (LLaVA's own value).
IMAGE_TOKEN_ID = -200
# Stands in `labels` where no loss is taken (the default `ignore_index` of PyTorch's cross entropy).
IGNORE_INDEX = -100
