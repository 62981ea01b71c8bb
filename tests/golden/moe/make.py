"""Makes the small mixtures of experts beside this file, and what mlx-lm computes from them.

    python -m venv v && v/bin/pip install 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
    v/bin/python make.py

Weights are random, drawn through mlx-lm's own model classes, and saved in the forms that are met:
as published (zero-centred norms, experts fused or one by one, the head among the trunk) and as
mlx-lm converts them (stacked experts, quantised, router and shared gate in 8 bits, the head in a
sidecar). mlx-lm loads every folder again with its own loader; its logits, computed in fp32, are the
golden ones. It has no MTP head: that one is put together here, of its layers.
"""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3_5, qwen3_5_moe, qwen3_next
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

HERE = Path(__file__).parent
TOKENS = 36
VOCAB = 128
HIDDEN = 64

SHAPE = {
    "hidden_size": HIDDEN,
    "vocab_size": VOCAB,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}


def moe_config(ffn):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    text = SHAPE | {
        "model_type": "qwen3_5_moe_text",
        "num_hidden_layers": 3,
        "full_attention_interval": 3,
        "moe_intermediate_size": ffn,
        "shared_expert_intermediate_size": 64,
        "rope_parameters": rope,
    }
    return {"model_type": "qwen3_5_moe", "eos_token_id": 0, "text_config": text}


def next_config(ffn):
    return SHAPE | {
        "model_type": "qwen3_next",
        "eos_token_id": 0,
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "intermediate_size": 64,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "moe_intermediate_size": ffn,
        "shared_expert_intermediate_size": ffn,
        "norm_topk_prob": False,
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.25,
    }


def model_of(config):
    module = qwen3_next if config["model_type"] == "qwen3_next" else qwen3_5_moe
    return module.Model(module.ModelArgs.from_dict(config))


class Head(nn.Module):
    """The MTP head, with the trunk's own kind of layer: full attention, experts."""

    def __init__(self, config):
        super().__init__()
        eps = config.get("text_config", config)["rms_norm_eps"]
        self.fc = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        self.pre_fc_norm_embedding = nn.RMSNorm(HIDDEN, eps)
        self.pre_fc_norm_hidden = nn.RMSNorm(HIDDEN, eps)
        self.norm = nn.RMSNorm(HIDDEN, eps)
        if config["model_type"] == "qwen3_next":
            args = qwen3_next.ModelArgs.from_dict(config)
            # Layer 1 has both.
            layer = qwen3_next.Qwen3NextDecoderLayer(args, 1)
        else:
            args = qwen3_5.TextModelArgs.from_dict(config["text_config"])
            layer = qwen3_5.DecoderLayer(args, args.full_attention_interval - 1)
        self.layers = [layer]

    def __call__(self, embedding, hidden):
        x = mx.concatenate(
            [self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)], axis=-1
        )
        return self.norm(self.layers[0](self.fc(x), mask="causal"))


def draw(module, seed, small=()):
    """Random weights in bf16; those whose names have one of `small` in them a tenth as large."""
    random = np.random.default_rng(seed)

    def weight(name, old):
        if name.endswith("A_log"):
            return mx.array(random.uniform(-2, 1, old.shape), mx.float32)
        value = random.standard_normal(old.shape)
        if name.endswith("dt_bias"):
            value = value - 1
        elif old.ndim == 1:
            value = 1 + value / 8
        elif "conv1d" in name:
            value = value / 2
        elif "embed_tokens" in name:
            value = value * 3
        else:
            value = value * 1.2 / old.shape[-1] ** 0.5
        if "lm_head" in name:
            value = value * 2.5
        if any(part in name for part in small):
            value = value / 10
        return mx.array(value).astype(mx.bfloat16)

    # In the order of names, so that the same numbers come out everywhere.
    flat = sorted(tree_flatten(module.parameters()))
    module.load_weights([(name, weight(name, old)) for name, old in flat])
    mx.eval(module.parameters())


def draw_head(config, seed):
    """Mostly passes the embedding on. The trunk's own layers add to the embedding too, so that what
    follows a token is often the same for both, and drafts are now right, now wrong."""
    head = Head(config)
    draw(head, seed, small=["o_proj", "down_proj", "fc"])
    eye = mx.concatenate([mx.eye(HIDDEN), mx.zeros((HIDDEN, HIDDEN))], axis=1)
    head.fc.weight = (head.fc.weight + eye).astype(mx.bfloat16)
    return head


def published(flat, head, fused):
    """Names, norms and layouts of published files, of converted ones: what mlx-lm undoes."""
    raw = {}
    gains = ("layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight")
    for name, value in flat.items():
        if name.endswith(gains) or (head and value.ndim == 1):
            value = (value.astype(mx.float32) - 1.0).astype(mx.bfloat16)
        if "conv1d" in name:
            value = value.moveaxis(2, 1)
        path, part = name.rsplit(".switch_mlp.", 1) if ".switch_mlp." in name else (name, None)
        if part is None:
            raw[name] = value
        elif not fused:
            for e in range(value.shape[0]):
                raw[f"{path}.experts.{e}.{part}"] = value[e]
        elif part == "up_proj.weight":
            gate = flat[f"{path}.switch_mlp.gate_proj.weight"]
            raw[f"{path}.experts.gate_up_proj"] = mx.concatenate([gate, value], axis=1)
        elif part == "down_proj.weight":
            raw[f"{path}.experts.down_proj"] = value
    return raw


def in_fp32(module):
    wide = lambda x: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x
    module.update(tree_map(wide, module.parameters()))
    return module


def golden(folder, head, ids):
    model, _ = load_model(folder)
    model, head = in_fp32(model), in_fp32(head)
    language = getattr(model, "language_model", model)
    x = mx.array(ids)[None]
    hidden = language.model(x)
    drafts = head(language.model.embed_tokens(x[:, 1:]), hidden[:, :-1])
    logits = language.lm_head(hidden)
    assert mx.allclose(logits, model(x), atol=1e-5).item()
    return {"logits": logits[0], "mtp_logits": language.lm_head(drafts)[0]}


def write(folder, config, weights):
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def make(name, config, seed, bits, fused):
    folder = HERE / name
    model, head = model_of(config), draw_head(config, seed + 1)
    draw(model, seed)
    if bits is None:
        trunk = published(dict(tree_flatten(model.parameters())), False, fused)
        trunk = {n.replace("language_model.model.", "model.language_model."): w
                 for n, w in trunk.items()}
        trunk = {n.replace("language_model.lm_head", "lm_head"): w for n, w in trunk.items()}
        own = dict(tree_flatten(head.parameters()))
        raw = published(own, True, fused)
        write(folder, config, trunk | {f"mtp.{n}": w for n, w in raw.items()})
        # A gain of bf16 loses its last bits when it is stored as gain - 1: read them back.
        back = {n: w + 1.0 for n, w in raw.items() if w.ndim == 1}
        head.load_weights([(n, w.astype(mx.float32)) for n, w in (own | back).items()])
    else:
        model, config = quantize_model(model, config, 64, bits, quant_predicate=None)
        folder.mkdir(exist_ok=True)
        save_model(folder, model, donate_model=False)
        (folder / "model.safetensors.index.json").unlink()
        save_config(config, folder / "config.json")
        nn.quantize(head, 64, bits)
        flat = {f"mtp.{n}": w for n, w in tree_flatten(head.parameters())}
        mx.save_safetensors(str(folder / "mtp.safetensors"), flat, metadata={"format": "mlx"})
    ids = np.random.default_rng(seed).integers(1, VOCAB, TOKENS).astype(np.uint16)
    tensors = golden(folder, head, ids.tolist()) | {"ids": mx.array(ids)}
    print(name, "largest logit", mx.abs(tensors["logits"]).max().item())
    return {f"{name}.{key}": value for key, value in tensors.items()}


def main():
    mx.set_default_device(mx.cpu)
    tensors = {}
    tensors |= make("moe-raw", moe_config(16), 10, None, True)
    tensors |= make("moe-q4", moe_config(64), 20, 4, None)
    tensors |= make("next-raw", next_config(16), 30, None, False)
    tensors |= make("next-q8", next_config(64), 40, 8, None)
    mx.save_safetensors(str(HERE / "golden.safetensors"), tensors)


if __name__ == "__main__":
    main()
