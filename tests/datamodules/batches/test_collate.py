import torch

from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID
from datamodules.batches.collate import Row, collate


def image(value: float) -> list[torch.Tensor]:
    return [torch.full((3, 4, 4), value), torch.full((3, 2, 2), -value)]


def test_rows_are_padded_on_the_right():
    rows = [
        Row("a", [5, IMAGE_TOKEN_ID, 6], [IGNORE_INDEX, IGNORE_INDEX, 6], images=image(1)),
        Row("b", [7], [7]),
        Row("c", [IMAGE_TOKEN_ID, 9], [IGNORE_INDEX, 9], images=image(3)),
    ]
    batch = collate(rows, pad_id=1)
    assert batch["input_ids"].tolist() == [[5, -200, 6], [7, 1, 1], [-200, 9, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 6], [7, -100, -100], [-100, 9, -100]]
    assert batch["mask"].tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert (batch["input_ids"].dtype, batch["labels"].dtype, batch["mask"].dtype) == (
        torch.int64,
        torch.int64,
        torch.bool,
    )
    assert batch["keys"] == ["a", "b", "c"]
    first, second = batch["images"]
    assert first.shape == (2, 3, 4, 4)
    assert second.shape == (2, 3, 2, 2)
    assert first[:, 0, 0, 0].tolist() == [1, 3]  # in the order of the rows
    assert "features" not in batch


def test_text_alone_has_neither_images_nor_features():
    batch = collate([Row("a", [5], [5])], pad_id=1)
    assert batch.keys() == {"input_ids", "labels", "mask", "keys"}


class Store:
    def __contains__(self, _: object) -> bool:
        return True

    def get(self, hashes):
        return torch.tensor([float(name) for name in hashes])[:, None, None, None].expand(-1, 2, 3, 4)


def test_features_come_in_the_order_of_the_rows():
    rows = [Row("a", [1], [1], image_sha256="10"), Row("b", [1], [1]), Row("c", [1], [1], image_sha256="12")]
    batch = collate(rows, pad_id=0, features=Store())
    assert batch["features"].shape == (2, 2, 3, 4)
    assert batch["features"][:, 0, 0, 0].tolist() == [10, 12]
    assert "images" not in batch
    assert "features" not in collate(rows[1:2], pad_id=0, features=Store())


def test_packed_rows_name_the_sample_of_every_token():
    rows = [
        Row("a", [5, IMAGE_TOKEN_ID, 6], [IGNORE_INDEX, IGNORE_INDEX, 6], images=image(1)),
        Row("b", [7], [7]),
        Row("c", [IMAGE_TOKEN_ID, 9], [IGNORE_INDEX, 9], images=image(3)),
    ]
    batch = collate(rows, pad_id=1, packs=[2, 1])
    assert batch["input_ids"].tolist() == [[5, -200, 6, 7], [-200, 9, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 7], [-100, 9, -100, -100]]
    assert batch["mask"].tolist() == [[True] * 4, [True, True, False, False]]
    assert batch["seq_idx"].tolist() == [[0, 0, 0, 1], [2, 2, 2, 2]]
    assert batch["seq_idx"].dtype == torch.int32
    assert batch["keys"] == ["a", "b", "c"]
    assert batch["images"][0][:, 0, 0, 0].tolist() == [1, 3]
    assert "seq_idx" not in collate(rows, pad_id=1)
