"""Names of other libraries, of papers and of habit -> the names that tfc has for the same thing."""

__all__ = [
    "ATTRIBUTES", "FOREIGN_MODULES", "IMPLICIT_ALIASES", "NAMES", "ONLY_TRAINING", "OTHERWISE", "TYPES", "plain",
]  # fmt: skip


def plain(name: str) -> str:
    """Spelling does not count: `LayerNorm`, `layer_norm`, `layernorm`."""
    return name.lower().replace("_", "")


NAMES = {
    "attn": "attention", "mha": "attention", "multiheadattention": "attention", "selfattention": "attention",
    "selfattn": "attention", "mlp": "ffn", "feedforward": "ffn", "ff": "ffn", "dense": "linear", "fc": "linear",
    "lmhead": "linear", "proj": "linear", "embedding": "embed", "emb": "embed", "rmsnorm": "rms", "norm": "rms",
    "layernorm": "layer_norm", "ln": "layer_norm", "swish": "silu", "swiglu": "silu", "geglu": "gelu",
    "geluapprox": "gelu_tanh",
    "gelunew": "gelu_tanh", "relusquared": "relu2", "squaredrelu": "relu2", "rotary": "rope", "ropeembedding": "rope",
    "rotaryembedding": "rope", "slidingwindow": "window", "local": "window", "causalmask": "causal", "tril": "causal",
    "fabs": "abs", "absolute": "abs", "maximum": "max", "minimum": "min", "power": "pow", "ln2": "log", "pow2": "exp2",
    "where": "if", "cat": "concat", "concatenate": "concat", "sumover": "sum", "average": "mean", "null": "none",
}  # fmt: skip
"""Blocks, formulas and functions, by their plain spelling."""

_EQUATION = "an index equation: `y[b, t, o] = sum[c](x[b, t, c] * w[c, o])`"
_AXES = "`y[b, c, t] = x[b, t, c]` moves axes; `split` and `join` make heads and unmake them"
_ORDER = "`top(x, n)` gives the places of the n largest, largest first; `top(-x, n)` of the smallest"
_GLU = "two projections, or halves of one: `cut(x, 0, n) * sigmoid(cut(x, n, n))`"
_COUNT = "an index is its number: `place[t: length(x)] = t`"

OTHERWISE = {
    "einsum": _EQUATION, "matmul": _EQUATION, "bmm": _EQUATION, "dot": _EQUATION, "transpose": _AXES, "permute": _AXES,
    "swapaxes": _AXES, "rearrange": _AXES, "reshape": _AXES, "view": _AXES, "flatten": _AXES, "sort": _ORDER,
    "argsort": _ORDER, "argmax": _ORDER, "argmin": _ORDER, "glu": _GLU, "arange": _COUNT, "iota": _COUNT,
}  # fmt: skip
"""What no single name stands for here, by its plain spelling, and how it is written."""

ATTRIBUTES = {
    "attndropout": "dropout", "attentiondropout": "dropout",
    "nheads": "heads", "numheads": "heads", "numattentionheads": "heads", "nhead": "heads", "numkvheads": "kv_heads",
    "nkvheads": "kv_heads", "kvheads": "kv_heads", "numkeyvalueheads": "kv_heads", "groups": "kv_heads",
    "headsize": "head_dim", "dhead": "head_dim", "headdimension": "head_dim", "dimhead": "head_dim", "bias": "biased",
    "usebias": "biased", "activation": "act", "nonlinearity": "act", "dff": "hidden", "hiddensize": "hidden",
    "hiddendim": "hidden", "intermediatesize": "hidden", "inner": "hidden", "posemb": "position", "pos": "position",
    "positional": "position", "attnmask": "mask", "attentionmask": "mask", "vocabsize": "vocab", "dmodel": "width",
    "dim": "width", "embeddim": "width", "epsilon": "eps", "softmaxscale": "scale", "smscale": "scale",
}  # fmt: skip
"""Attributes of components, by their plain spelling."""

IMPLICIT_ALIASES = {
    "query": "q", "i": "q", "key": "k", "j": "k", "score": "s", "scores": "s", "logit": "s", "logits": "s", "w": "p",
    "prob": "p", "weight": "p", "weights": "p", "head": "h", "position": "pos", "t": "pos", "channel": "c", "pair": "c",
    "vector": "u", "x": "u",
}  # fmt: skip
"""What formulas call their implicit variables elsewhere; read where the role has the variable."""

TYPES = {
    "int32": "int", "int64": "int", "int16": "int", "long": "int", "i32": "int", "i64": "int", "integer": "int",
    "float": "f32", "float32": "f32", "fp32": "f32", "bfloat16": "bf16", "float16": "f16", "half": "f16", "fp16": "f16",
    "double": "f64", "float64": "f64", "boolean": "bool", "tensor": "real",
}  # fmt: skip
"""Element types."""

FOREIGN_MODULES = frozenset("nn torch F jnp np jax tf math keras flax lax ops self".split())
"""What stands before a point elsewhere, and before nothing here."""

ONLY_TRAINING = frozenset(("residdropout", "droppath", "labelsmoothing"))
"""Attributes and functions of training, which a spec says nothing of; by their plain spelling."""
