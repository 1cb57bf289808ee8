"""Make the reference values of tests/test_bert.py and tests/test_tokenize.py with PyTorch.

    pip install torch==2.13.0 transformers==5.23.0 safetensors
    python tests/golden/make_bert_golden.py

Writes, beside this file, a folder per architecture (config.json, model.safetensors, expected.npz)
with a small random model, its inputs, outputs and gradients; and bert/vocab.txt with tokens.json,
what transformers' tokenizer makes of some texts. The same versions write the same files.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, RobertaConfig, RobertaModel

HERE = Path(__file__).parent
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
LENGTHS = (12, 7, 1)  # tokens of the three rows; the rest is padding
WORDS = """
the a an film movie is was not good bad great fun un ##believ ##able ##ly cafe resume
naive play ##ing ##ed ##s ##er act ##or over ##whelm one two 2 ##0 ##2 ##6 3 . , ! ? ' - :
; ( ) / # @ & % $ 中 国 電 影 日 本 é É ü straße ß ñ ² ½ … “ ” — 🙂 i ' m don t can ##t it ##self
The Film A
"""
GRADIENTS = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "query": "encoder.layer.0.attention.self.query.weight",
    "key_bias": "encoder.layer.1.attention.self.key.bias",
    "intermediate": "encoder.layer.1.intermediate.dense.weight",
    "output_norm": "encoder.layer.0.output.LayerNorm.weight",
    "pooler": "pooler.dense.weight",
}


def vocabulary():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*special, *WORDS.split(), *letters]
    return list(dict.fromkeys(words))


def randomise(model, generator):
    """Values so large that attention is far from uniform and every bias counts."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            spread = 0.4 if "LayerNorm" in name or "embeddings" in name else 0.25
            shift = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(shift + spread * drawn)


def inputs(config, rng, types):
    length = max(LENGTHS)
    mask = (np.arange(length) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(5, config.vocab_size, mask.shape), config.pad_token_id)
    segments = np.where(mask, rng.integers(0, types, mask.shape), 0)
    return {"ids": ids, "types": segments, "mask": mask}


def make_model(name, model, rng):
    generator = torch.Generator().manual_seed(len(name))
    randomise(model, generator)
    model.eval()
    model.save_pretrained(HERE / name)
    tokens = inputs(model.config, rng, model.config.type_vocab_size)
    ids, types, mask = (torch.from_numpy(tokens[n]) for n in ("ids", "types", "mask"))
    made = model(input_ids=ids, token_type_ids=types, attention_mask=mask)
    sequence, pooled = made.last_hidden_state, made.pooler_output
    weights = torch.randn(sequence.shape, generator=generator)
    loss = pooled.pow(2).sum() + (sequence * weights * mask[..., None]).sum()
    loss.backward()
    parameters = dict(model.named_parameters())
    saved = {n: a.astype(np.int32) for n, a in tokens.items()}
    saved |= {"weights": weights.numpy(), "loss": loss.item()}
    saved |= {"sequence": sequence.detach().numpy(), "pooled": pooled.detach().numpy()}
    saved |= {f"grad_{n}": parameters[full].grad.numpy() for n, full in GRADIENTS.items()}
    np.savez_compressed(HERE / name / "expected.npz", **saved)


TEXTS = [
    "The film is unbelievable!",
    "the movie was not good, not bad.",
    "",
    "   \t\n ",
    "Café résumé naïve ÉÜÑ",
    "cafe\u0301 e\u0301",  # accents as characters of their own
    "straße STRASSE ﬁlm",
    "中国電影is日本",
    "🙂 good 🙂🎬 film👍🏽",
    "played playing players overwhelmed",
    "x" * 101,
    "zz" * 60 + " good",
    "I'm can't don't — “fun”… (2026) 50% $2 #1 @a a/b",
    "zero\u200bwidth\u00a0space\u0000null\ufffdreplacement\u00adsoft",
    "[CLS] [SEP] [MASK] [PAD] [UNK] [mask]",
    "good " * 30,
    "²½ ２０２６ ｆｉｌｍ",
    "İstanbul ΑΣ ΟΔΟΣ",
]
PAIRS = [
    ["the film is good", "the movie is bad"],
    ["", "good"],
    ["good", ""],
    ["", ""],
    ["good " * 20, "bad"],
    ["good", "bad " * 20],
    ["good " * 20, "bad " * 20],
    ["good " * 20, "bad " * 21],
    ["good " * 21, "bad " * 20],
    ["unbelievable film", "overwhelmed players " * 5],
]


def make_tokens(vocab):
    cases = []
    for lower in (True, False):
        tokenizer = BertTokenizerFast(vocab=str(vocab), do_lower_case=lower)
        for length in (16, 9, 64):
            for kind, texts in (("texts", TEXTS), ("pairs", PAIRS)):
                first = texts if kind == "texts" else [a for a, _ in texts]
                second = None if kind == "texts" else [b for _, b in texts]
                made = tokenizer(
                    first, second, padding="max_length", truncation=True, max_length=length
                )
                rows = zip(
                    made["input_ids"], made["token_type_ids"], made["attention_mask"], strict=True
                )
                cases.append(
                    {
                        "lower": lower,
                        "length": length,
                        "kind": kind,
                        # Without the padding, which is 0 in all three.
                        "rows": [{"ids": i[: sum(m)], "types": t[: sum(m)]} for i, t, m in rows],
                    }
                )
    content = {"texts": TEXTS, "pairs": PAIRS, "cases": cases}
    (HERE / "tokens.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


def main():
    rng = np.random.default_rng(7)
    words = vocabulary()
    bert = BertConfig(vocab_size=len(words), layer_norm_eps=1e-12, **SIZES)
    make_model("bert", BertModel(bert), rng)
    roberta = RobertaConfig(
        vocab_size=120, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5, **SIZES
    )
    make_model("roberta", RobertaModel(roberta), rng)
    vocab = HERE / "bert" / "vocab.txt"
    vocab.write_text("\n".join(words) + "\n")
    make_tokens(vocab)


if __name__ == "__main__":
    main()
