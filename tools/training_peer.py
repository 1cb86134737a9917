#!/usr/bin/env python3
"""Training speed and memory of PyTorch + transformers (+ PEFT), to put beside ours.

    python3 -m venv v && v/bin/pip install torch transformers peft
    v/bin/python tools/training_peer.py make 10m /tmp/10m
    v/bin/python tools/training_peer.py run /tmp/10m full 8 512
    cargo run --release -p lapidary-tune --example training_speed -- /tmp/10m full 8 512

Both do whole steps (forward, backward, clipping, AdamW) in float32 on all cores, on the same
checkpoint and the same tokens, and print tokens per second of the median step and peak memory.
With `bf16` as the last argument both multiply matrices in bfloat16 (here: autocast).
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

SHAPES = {
    "10m": dict(vocab_size=8192, hidden_size=256, intermediate_size=1024, num_hidden_layers=8,
                num_attention_heads=4, num_key_value_heads=1, head_dim=64),
    "124m": dict(vocab_size=32768, hidden_size=768, intermediate_size=2816, num_hidden_layers=12,
                 num_attention_heads=12, num_key_value_heads=4, head_dim=64),
    "270m": dict(vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
                 num_attention_heads=4, num_key_value_heads=1, head_dim=256),
}


def make(shape, folder):
    config = transformers.Gemma3TextConfig(
        **SHAPES[shape], sliding_window=512, max_position_embeddings=8192, query_pre_attn_scalar=64
    )
    torch.manual_seed(0)
    transformers.Gemma3ForCausalLM(config).save_pretrained(folder)
    path = Path(folder) / "config.json"
    found = json.loads(path.read_text())
    found.setdefault("model_type", "gemma3_text")
    path.write_text(json.dumps(found, indent=2))


def one_step(model, trained, optimizer, ids, labels, bf16=False):
    """Forward, backward, clipping, AdamW; returns the loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def run(folder, method, batch, length, steps, bf16):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if method == "lora":
        import peft

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=names))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    vocab = model.config.vocab_size
    ids = torch.tensor([[5 + (i * 7 + b * 131) % (vocab - 5) for i in range(length)] for b in range(batch)])
    times = []
    for step in range(steps):
        start = time.perf_counter()
        loss = one_step(model, trained, optimizer, ids, ids, bf16)
        times.append(time.perf_counter() - start)
        print(f"step {step}: loss {loss.item():.4f}, {times[-1]:.2f} s", flush=True)
    rate = batch * length / statistics.median(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"torch {torch.__version__}: {rate:.0f} tokens/s, peak {peak:.2f} GB")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3])
    else:
        bf16 = sys.argv[-1] == "bf16"
        folder, method, *numbers = sys.argv[2 : len(sys.argv) - bf16]
        batch, length, steps = map(int, [*numbers, 4][:3])
        run(folder, method, batch, length, steps, bf16)
