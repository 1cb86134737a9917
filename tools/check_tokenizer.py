#!/usr/bin/env python3
"""Checks a folder that `lapidary train-tokenizer` wrote against the reference libraries.

    pip install sentencepiece tokenizers
    tools/check_tokenizer.py TOKENIZER_DIR TEXT_FILE [LAPIDARY MODEL]

Both libraries must load their file and encode every line of TEXT_FILE, and a set of nasty strings, to
the same ids. With LAPIDARY (the program) and MODEL (a checkpoint with this tokenizer), its ids too.
"""
import json
import subprocess
import sys

import sentencepiece
import tokenizers

NASTY = ["", " ", "  ", "a  b", "   a", "a   ", "\n", "\n\n\n\n\n\n", "\t\tx", "1234567890", "é e\u0301",
         "日本語のテキスト", "🙂🙂👨‍👩‍👧", "x" * 300, "▁", "▁▁a", "<start_of_turn>user\nhi<end_of_turn>\n", "don't",
         "a\u00a0b", "\u200bzero", "Ωμέγα", "שלום", "مرحبا", "\x00\x01", "<0x0A>", "<unused0>", "\r\n"]


def main():
    folder, text = sys.argv[1:3]
    sp = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
    hf = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    lines = NASTY + [line.rstrip("\n") for line in open(text, encoding="utf-8")]
    ours = None
    if len(sys.argv) > 4:
        out = subprocess.run([sys.argv[3], "tokenize", "--special", "--model", sys.argv[4]], check=True,
                             input="".join(json.dumps(line) + "\n" for line in lines),
                             capture_output=True, text=True).stdout
        ours = [json.loads(line) for line in out.splitlines()]
    wrong = 0
    for i, line in enumerate(lines):
        a, b = sp.encode(line), hf.encode(line, add_special_tokens=False).ids
        same = a == b and (ours is None or ours[i] == a)
        if not same or (hf.decode(a, skip_special_tokens=False) != sp.decode(a) and "<" not in line):
            wrong += 1
            if wrong <= 5:
                print(f"{line!r}\n  sentencepiece {a}\n  tokenizers    {b}\n  lapidary      {ours and ours[i]}")
    print(f"{len(lines)} strings, {wrong} differ; {sp.vocab_size()} and {hf.get_vocab_size()} entries")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
