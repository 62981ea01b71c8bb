"""mlx-lm at the full shape of Qwen3.6-27B with random 4-bit weights: prefill and decode.

Stands beside `mtplx bench shape`. Needs mlx-lm 0.32.2 and an MLX for the machine's device.

    python mlx_lm_shape.py [--layers 64] [--prompt 4096] [--steps 20]
"""

import argparse
import statistics
import time

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.qwen3_5 import TextModel, TextModelArgs

# What mlx-lm feeds at once of a long prompt, unless told otherwise.
PREFILL_STEP = 2048


def model_of(layers: int, small: bool) -> TextModel:
    """A model of the shape; weights are made, cast and quantised layer by layer."""
    args = TextModelArgs(
        hidden_size=1024 if small else 5120,
        intermediate_size=3584 if small else 17408,
        num_hidden_layers=layers,
        num_attention_heads=8 if small else 24,
        num_key_value_heads=2 if small else 4,
        head_dim=256,
        vocab_size=16384 if small else 248320,
        linear_num_value_heads=16 if small else 48,
        linear_num_key_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        rope_parameters={"type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    )
    model = TextModel(args)
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=64, bits=4)
    for layer in model.layers:
        mx.eval(layer.parameters())
    mx.eval(model.parameters())
    return model


def prefill(model: TextModel, tokens: mx.array) -> tuple[float, list]:
    """Seconds to feed a prompt as mlx-lm does and to have its last logits, and the cache."""
    cache = model.make_cache()
    start = time.perf_counter()
    for at in range(0, tokens.shape[1], PREFILL_STEP):
        logits = model(tokens[:, at : at + PREFILL_STEP], cache=cache)
        if at + PREFILL_STEP < tokens.shape[1]:
            mx.eval([c.state for c in cache])
    mx.eval(logits[:, -1])
    return time.perf_counter() - start, cache


def steps(model: TextModel, clients: int, length: int, count: int) -> float:
    """Median milliseconds of a step that feeds `length` tokens of each of `clients` rows."""
    cache = model.make_cache()
    mx.eval(model(mx.full((clients, 64), 7), cache=cache))
    times = []
    for _ in range(count):
        start = time.perf_counter()
        mx.eval(mx.argmax(model(mx.full((clients, length), 7), cache=cache), axis=-1))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="a small shape, for a CPU")
    args = parser.parse_args()
    print(f"mlx-lm on MLX {mx.__version__}, {mx.default_device()}", flush=True)
    model = model_of(args.layers, args.small)
    print(f"{args.layers} layers, {mx.get_active_memory() / 1e9:.1f} GB", flush=True)
    tokens = mx.random.randint(0, 10_000, (1, args.prompt))
    mx.eval(tokens)
    for _ in range(2):
        seconds, _cache = prefill(model, tokens)
        rate = args.prompt / seconds
        print(f"prefill of {args.prompt}: {1e3 * seconds:.1f} ms, {rate:.0f} tokens/s", flush=True)
    for clients, length in [(1, 1), (1, 4), (8, 1)]:
        took = steps(model, clients, length, args.steps)
        print(f"B={clients} T={length}: step {took:.2f} ms", flush=True)



if __name__ == "__main__":
    main()
