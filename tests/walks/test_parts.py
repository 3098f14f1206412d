"""Encoders, language models and recipes from another package."""

from ablate.core.files import read_json, read_lines


def test_an_encoder_that_is_not_timms(walk):
    run = walk("patch_statistics").check_and_train(
        "encoder.names=[small]", "encoder.family=[patch_statistics]", "encoder.fields=[{patch: 16}]"
    )
    assert read_json(run.result)["cost"]["visual_tokens"] == 16
    assert "patch_statistics" in read_json(run.provenance)["sources"]


def test_a_transformer_language_model(walk):
    walk("small_gpt").check_and_train("language={name: small_gpt, d_model: 32, n_layer: 1, vocab_size: 400}")


def test_a_recipe_that_distils_from_a_teacher(walk):
    package = walk("distil")
    teacher = package.train("train.epochs=2")
    run = package.check_and_train("train.stage=distil", f"train.fields.teacher={teacher.folder}")
    assert all(line["loss/kl"] > 0 for line in read_lines(run.steps))
    assert read_json(run.provenance)["weights"]["recipe"][0]["sha256"]
    assert run.weights.stat().st_size == teacher.weights.stat().st_size  # nothing of the teacher is kept
