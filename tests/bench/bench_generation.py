"""Greedy generation of 128 tokens: ours beside transformers' `generate`, on the same weights, in interleaved runs.

Timed from the prompt to the last token. The prompts are as long as the demo's (49 visual tokens) and the paper's (729).
"""

import os
import statistics
import time
from collections.abc import Callable

# Before the libraries load. A thread that waits for one which is not running must not spin: on a shared machine that
# would measure the neighbours.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM
from transformers.utils import logging

from ablate.model.generation import generate, likeliest
from ablate.model.languages.mamba2 import MambaConfig, MambaLMHeadModel, SSMConfig

NEW, RUNS, GOAL = 128, 5, 2.0
CASES = [(1, 64), (1, 768), (8, 64), (32, 64)]  # batch, prompt
CONFIG = MambaConfig(
    d_model=256, n_layer=4, vocab_size=50277, pad_vocab_size_multiple=1, ssm_cfg=SSMConfig(d_state=64, headdim=32)
)


def reference(ours: MambaLMHeadModel) -> Mamba2ForCausalLM:
    """transformers' model with the same weights."""
    config, ssm = ours.config, ours.config.ssm_cfg
    model = Mamba2ForCausalLM(
        Mamba2Config(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layer,
            vocab_size=config.padded_vocab_size,
            state_size=ssm.d_state,
            head_dim=ssm.headdim,
            num_heads=ssm.expand * config.d_model // ssm.headdim,
            n_groups=ssm.ngroups,
            conv_kernel=ssm.d_conv,
            expand=ssm.expand,
            chunk_size=64,  # the fastest here; its default is 256
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    renamed = ((name.replace("embedding.", "embeddings."), tensor) for name, tensor in ours.state_dict().items())
    model.load_state_dict(dict(renamed))
    return model.to(next(ours.parameters()).device).eval()


def seconds(run: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    logging.set_verbosity_error()  # its advice on kernels that are not installed
    device = os.environ.get("BENCH_DEVICE", "cpu")
    torch.manual_seed(0)
    ours = MambaLMHeadModel(CONFIG).to(device).eval()
    theirs = reference(ours)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(
        f"{NEW} tokens; d_model {CONFIG.d_model}, {CONFIG.n_layer} layers, vocabulary "
        f"{CONFIG.vocab_size}, float32, {device}{threads}; medians of {RUNS} interleaved runs"
    )
    for batch, length in CASES:
        prompt = torch.randint(1, CONFIG.vocab_size, (batch, length), device=device)

        def run_ours(prompt: torch.Tensor = prompt) -> list[list[int]]:
            with torch.inference_mode():
                return generate(ours, ours.backbone.embedding(prompt), max_new_tokens=NEW, eos_id=-1)

        def run_theirs(prompt: torch.Tensor = prompt) -> list[list[int]]:
            mask = torch.ones_like(prompt)
            whole = theirs.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
            return whole[:, prompt.shape[1] :].tolist()

        assert run_ours() == run_theirs(), "ours and transformers' tokens differ"  # and both are warm
        times = [(seconds(run_ours, device), seconds(run_theirs, device)) for _ in range(RUNS)]
        mine, other = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"batch {batch}, prompt {length}: ours {mine:.3f} s ({batch * NEW / mine:.0f} tokens/s), "
            f"transformers {other:.3f} s ({batch * NEW / other:.0f} tokens/s): {other / mine:.2f}x "
            f"(goal: at least {GOAL:g}x)"
        )
    logits = torch.randn(32, CONFIG.vocab_size, device=device)
    times = [
        (seconds(lambda: likeliest(logits), device), seconds(lambda: logits.argmax(-1), device)) for _ in range(50)
    ]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"the likeliest of {CONFIG.vocab_size} tokens, batch 32: {other / mine:.2f}x as fast as argmax")


if __name__ == "__main__":
    main()
