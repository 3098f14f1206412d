"""A packed conversation is the conversation on its own: the same logits, the same loss, whatever the connector."""

import pytest
import torch

import connectors
from ablate.model import VLM
from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID
from datamodules.batches.collate import Row, collate
from datamodules.order.packing import plan_packed_epoch

GRID, FEATURES, BUDGET, SAMPLES = (4, 4), 16, 72, 14


class Features:
    """A feature store: an image's features follow from its name."""

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, names):
        return torch.stack(
            [torch.randn(*GRID, FEATURES, generator=torch.Generator().manual_seed(int(name))) for name in names]
        )


def samples(visual: int) -> list[Row]:
    """Conversations of 2 to 40 tokens; every third is text alone, every fifth has text before its image."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(SAMPLES):
        text = torch.randint(0, 50, (int(torch.randint(2, 34, (), generator=generator)),), generator=generator).tolist()
        image = [] if number % 3 == 2 else [IMAGE_TOKEN_ID] * visual
        ids = text[:1] + image + text[1:] if number % 5 == 4 else image + text
        learned = max(1, len(text) // 2)
        labels = [IGNORE_INDEX] * (len(ids) - learned) + ids[-learned:]
        rows.append(Row(f"sample-{number}", ids, labels, image_sha256=str(number) if image else ""))
    return rows


def logits(vlm: VLM, batch) -> torch.Tensor:
    hidden = vlm.language.backbone(vlm.embed(batch), mask=batch["mask"], seq_idx=batch.get("seq_idx"))
    return vlm.language.lm_head(hidden)


@pytest.fixture(params=connectors.names())
def any_vlm(request, language) -> VLM:
    """Every connector of the registry, in training mode: nothing may leak between rows there either."""
    torch.manual_seed(2)
    fields = connectors.contract.registry.get(request.param).test_fields
    connector = connectors.create(request.param, FEATURES, language.config.d_model, **fields)
    return VLM(None, connector, language, size=max(connector.sizes, default=None))


def test_logits_and_loss_are_those_of_the_conversations_apart(any_vlm):
    rows = samples(connectors.tokens_per_image(any_vlm.connector, *GRID))
    lengths = torch.tensor([len(row.input_ids) for row in rows]).numpy()
    (packed,) = plan_packed_epoch(lengths, budget=BUDGET, batch_size=99, seed=0, epoch=0)
    assert max(map(len, packed)) > 2
    order = [sample for row in packed for sample in row]
    batch = collate([rows[n] for n in order], pad_id=0, features=Features(), packs=[len(row) for row in packed])
    assert not batch["mask"].all()  # padding behind the last conversation of a row
    with torch.no_grad():
        together = logits(any_vlm, batch)
        for place, sample in enumerate(order):
            alone = logits(any_vlm, collate([rows[sample]], pad_id=0, features=Features()))[0]
            mine = together[(batch["seq_idx"] == place) & batch["mask"]]
            torch.testing.assert_close(mine, alone, atol=1e-5, rtol=1e-5)
    apart = collate(rows, pad_id=0, features=Features())
    (total, count, _), (expected, expected_count, _) = any_vlm.loss(batch), any_vlm.loss(apart)
    assert count == expected_count > SAMPLES
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    gradients = [_gradients(any_vlm, loss) for loss in (total, expected)]
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-3, atol=1e-4)


def _gradients(vlm: VLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    vlm.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in vlm.named_parameters()}
