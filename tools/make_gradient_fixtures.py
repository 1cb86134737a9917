#!/usr/bin/env python3
"""Gradients of the reference implementation (PyTorch, transformers), for crates/tune/tests/gradients.rs.

    python3 -m venv v && v/bin/pip install torch transformers
    v/bin/python tools/make_gradient_fixtures.py ../shared/fixtures/models crates/tune/tests/data

For each family: two sequences of which a part is learnt, their mean loss in float32, and for every
parameter the length of its gradient and a few of its values, picked by a fixed seed.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

FAMILIES = ["gemma", "gemma2", "gemma3_text", "llama_gqa", "llama_mha", "gpt2", "gpt3", "gpt_neo",
            "gemma4_text", "gemma4_12b", "gemma4_31b", "gemma4_e2b", "gemma3n_text", "gemma4_26b_a4b"]
PICKED = 10


def local_attention(model, config):
    """GPT-3's alternating layers, which the GPT-2 class ignores: masks for its blocks."""
    kinds = config["attention_layers"]

    def hook(kind):
        def before(_, args, kwargs):
            length = args[0].shape[1] if args else kwargs["hidden_states"].shape[1]
            i = torch.arange(length)
            seen = i[None, :] <= i[:, None]
            if kind == "local":
                seen &= i[:, None] - i[None, :] < config["window_size"]
            mask = torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
            mask = mask[None, None]
            if len(args) > 2:
                args = args[:2] + (mask,) + args[3:]
            else:
                kwargs["attention_mask"] = mask
            return args, kwargs

        return before

    for block, kind in zip(model.transformer.h, kinds):
        block.register_forward_pre_hook(hook(kind), with_kwargs=True)


def main(models, out):
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2026)
    for family in FAMILIES:
        path = models / family
        config = json.loads((path / "config.json").read_text())
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        model.eval()
        if "attention_layers" in config and config["model_type"] == "gpt2":
            local_attention(model, config)
        text = config.get("text_config", config)
        # Gemma 3n's last tokens share the padding's per-layer embedding, whose gradient PyTorch drops.
        vocab = min(text["vocab_size"], text.get("vocab_size_per_layer_input") or text["vocab_size"])
        sequences = []
        for length, start in [(40, 1), (23, 9)]:
            ids = rng.integers(3, vocab, length).tolist()
            sequences.append({"ids": ids, "learn": [i >= start and i % 5 != 2 for i in range(length)]})
        learnt = sum(sum(s["learn"][1:]) for s in sequences)
        total = 0.0
        for s in sequences:
            ids = torch.tensor([s["ids"]])
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            (loss * torch.tensor(s["learn"][1:])).sum().div(learnt).backward()
            total += float((loss.double() * torch.tensor(s["learn"][1:])).sum()) / learnt
        parameters = []
        for name, p in model.named_parameters():
            if any(part in name for part in ("vision", "audio")):
                continue
            g = torch.zeros_like(p) if p.grad is None else p.grad
            flat = g.flatten().double().numpy()
            picked = sorted(rng.integers(0, flat.size, min(PICKED, flat.size)).tolist())
            values = [float(f"{flat[i]:.9g}") for i in picked]
            parameters.append(
                {"name": name, "norm": float(np.linalg.norm(flat)), "at": picked, "values": values}
            )
        made = {
            "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "loss": total,
            "sequences": sequences,
            "parameters": parameters,
        }
        (out / f"{family}.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")
        print(family, f"loss {total:.6f}", len(parameters), "parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
