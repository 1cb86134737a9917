#!/usr/bin/env python3
"""The held-out loss of a small Gemma 3 trained from nothing by Lapidary and by PyTorch + transformers.

    python3 -m venv v && v/bin/pip install torch transformers
    v/bin/python tools/training_curve.py target/release/lapidary CORPUS.jsonl OUT [STEPS]

Three seeds each: the same tokenizer, shape, spread of fresh weights, batch, schedule, AdamW and held-out
documents; the order of the data and the fresh weights are each program's own. Prints a Markdown table.
A second call goes on with what OUT holds.
"""

import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from training_peer import one_step

SEEDS, EVERY, SEQUENCE, BATCH, HELD_OUT, LR, WARMUP = (1, 2, 3), 50, 256, 2048, 0.02, 3e-3, 30
HELD_TOKENS = 20000

CONFIG = """
output = "{output}"
method = "full"
seed = {seed}
[model.init]
family = "gemma3"
tokenizer = "tokenizer"
width = 128
layers = 4
heads = 4
head_dim = 32
kv_heads = 1
ffn = 384
context = 512
window = 64
global_every = 4
std = 0.02
[data]
sequence = {SEQUENCE}
batch_tokens = {BATCH}
held_out = {HELD_OUT}
[[data.source]]
path = "{corpus}"
[schedule]
steps = {steps}
lr = {LR}
warmup = {WARMUP}
kind = "cosine"
[evaluate]
every = {EVERY}
tokens = {HELD_TOKENS}
[save]
every_minutes = 0
keep = 1
"""


def is_held_out(text):
    """As `Document::is_held_out`: FNV-1a of the JSON, mixed."""
    mask, h = (1 << 64) - 1, 0xCBF29CE484222325
    for byte in json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":")).encode():
        h = (h ^ byte) * 0x100000001B3 & mask
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & mask
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB & mask
    h ^= h >> 31
    return (h >> 11) / 2**53 < HELD_OUT


def pieces(text, tokenizer):
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    cut = [ids[i : i + SEQUENCE] for i in range(0, len(ids), SEQUENCE)]
    return [c for c in cut if len(c) > 1]


def padded(batch):
    """Rows that end early: what follows is seen by nobody and counts for nothing."""
    width = max(map(len, batch))
    ids = torch.tensor([p + [0] * (width - len(p)) for p in batch])
    labels = torch.tensor([p + [-100] * (width - len(p)) for p in batch])
    return ids, labels


def batches(docs, tokenizer, rng):
    batch, tokens = [], 0
    while True:
        rng.shuffle(docs)
        for doc in docs:
            for piece in pieces(doc, tokenizer):
                if tokens + len(piece) > BATCH and batch:
                    yield batch
                    batch, tokens = [], 0
                batch.append(piece)
                tokens += len(piece)


def evaluate(model, held):
    nats, count = 0.0, 0
    with torch.no_grad():
        for i in range(0, len(held), 16):
            ids, labels = padded(held[i : i + 16])
            learnt = int((labels[:, 1:] != -100).sum())
            nats += model(input_ids=ids, labels=labels, use_cache=False).loss.item() * learnt
            count += learnt
    return nats / count, count


def rate(step, steps):
    if step < WARMUP:
        return (step + 1) / WARMUP
    way = (step - WARMUP) / (steps - WARMUP - 1)
    return 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * way))


def theirs(folder, train, held, seed, steps):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "init")
    config = transformers.AutoConfig.from_pretrained(folder / "init")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    trained = list(model.parameters())
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    stream = batches(list(train), tokenizer, random.Random(seed))
    kept, count = [], 0
    for piece in (p for doc in held for p in pieces(doc, tokenizer)):
        if count + len(piece) > HELD_TOKENS:
            break
        kept.append(piece)
        count += len(piece)
    curve = {}
    for step in range(steps + 1):
        if step % EVERY == 0 or step == steps:
            curve[step], tokens = evaluate(model, kept)
            print(f"torch seed {seed} step {step}: {curve[step]:.4f} ({tokens} tokens)", flush=True)
        if step < steps:
            for group in optimizer.param_groups:
                group["lr"] = LR * rate(step, steps)
            one_step(model, trained, optimizer, *padded(next(stream)))
    return curve


def ours(program, out, corpus, seed, steps):
    name = f"seed-{seed}"
    values = {**globals(), "output": name, "seed": seed, "steps": steps, "corpus": corpus}
    (out / f"{name}.toml").write_text(CONFIG.format(**values))
    subprocess.run([program, "train", f"{name}.toml", "--resume"], cwd=out, check=True)
    entries = [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
    found = [e for e in entries if e["event"] == "evaluation"]
    print(f"lapidary seed {seed}: {found[-1]['loss']:.4f} ({found[-1]['tokens']} tokens)", flush=True)
    return {e["step"]: e["loss"] for e in found}


def main(program, corpus, out, steps=300):
    program, corpus, out = Path(program).resolve(), Path(corpus).resolve(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer").exists():
        args = ["train-tokenizer", str(corpus), "--vocab", "2048", "--out", "tokenizer"]
        subprocess.run([program, *args], cwd=out, check=True)
    docs = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    held = [d for d in docs if is_held_out(d)]
    train = [d for d in docs if not is_held_out(d)]
    curves = {"Lapidary": [], "PyTorch": []}
    for seed in SEEDS:
        curves["Lapidary"].append(ours(program, out, corpus, seed, steps))
        store = out / f"torch-{seed}.json"
        if not store.exists():
            store.write_text(json.dumps(theirs(out / f"seed-{seed}", train, held, seed, steps)))
        curves["PyTorch"].append({int(k): v for k, v in json.loads(store.read_text()).items()})
    print("| step | Lapidary | PyTorch |\n|---|---|---|")
    for step in sorted(curves["PyTorch"][0]):
        cells = []
        for name in curves:
            all_ = [c[step] for c in curves[name]]
            cells.append(f"{statistics.mean(all_):.3f} ({min(all_):.3f} to {max(all_):.3f})")
        print(f"| {step} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
