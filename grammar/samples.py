"""One call of every entry of the library, in a small model that has what they take: for the reference and the tests."""

from collections.abc import Mapping

__all__ = ["CALLS", "STAGE", "spec"]

STAGE = """\
tfm 1

"Tokens x [B, T, 8] with their fields, a grid of 4 columns, y their heads; ids [B, T]; an image [B, 8, 8, 3]."
model stage(x: real[B, T, 8], ids: int[B, T], image: real[B, 8, 8, 3]) {
  param slope[2] = normal(1)
  param near[9, 2] = normal(1)
  param buckets[32, 2] = normal(1)
  param square[49, 2] = normal(1)
  param w[6, 4] = normal(1)
  embed words { vocab = 10   width = 8 }

  segment[b, t] = ids[b, t] // 5
  real[b, t] = ids[b, t] > 0
  global[b, t] = t < 2
  size[b, t] = ids[b, t] + 1
  column[t: length(x)] = t % 4
  row[t: length(x)] = t // 4
  x = tag(x, segment = segment, real = real, global = global, size = size, y = row, x = column)
  y = split(x, 2)
  return CALL
}
"""
"""A whole file, but for `CALL`."""


def _role(kind: str, written: str) -> str:
    return f"attention(x, heads = 2, {kind} = {written})"


CALLS: Mapping[str, str] = {
    # linear
    "linear": "linear(x, 5, biased = yes)",
    "lora_linear": "lora_linear(x, 8, rank = 2)",
    "adapter": "x + adapter(x, hidden = 4)",
    "embed": "embed(ids, vocab = 10, width = 8)",
    "unembed": "unembed(words(ids), words)",
    "identity": "attention(x, heads = 2, out = identity)",
    # norms
    "layer_norm": "layer_norm(x)",
    "rms": "rms(x, eps = 1e-5)",
    "gated_rms": "gated_rms(x, 2 * x)",
    "unit": "unit(x)",
    "scale_norm": "scale_norm(x)",
    "batch_norm": "batch_norm(x)",
    "group_norm": "group_norm(x, groups = 2)",
    "instance_norm": "instance_norm(x)",
    "layer_scale": "x + layer_scale(linear(x, 8))",
    # activations
    "gelu": "gelu(x)",
    "gelu_tanh": "gelu_tanh(x)",
    "quick_gelu": "quick_gelu(x)",
    "silu": "silu(x)",
    "relu": "relu(x)",
    "relu2": "relu2(x)",
    "elu": "elu(x)",
    "softplus": "softplus(x)",
    "log_sigmoid": "log_sigmoid(x)",
    "softmax": "softmax(x)",
    "log_softmax": "log_softmax(x)",
    "logsumexp": "logsumexp(x)",
    "clip": "clip(x, -1, 1)",
    "statistical_top": "statistical_top(x, count = 2)",
    # attention
    "attention": "attention(x, heads = 2, mask = causal, position = rope())",
    "latent_attention": "latent_attention(x, heads = 2, kv_rank = 4, plain_dim = 4, rotated_dim = 2, mask = causal)",
    "ffn": "ffn(x, hidden = 16, gate = silu)",
    # masks
    "causal": _role("mask", "causal"),
    "window": _role("mask", "causal and window(4)"),
    "documents": _role("mask", "causal and documents"),
    "unpadded": _role("mask", "unpadded"),
    "prefix": _role("mask", "prefix(4)"),
    "dilated": _role("mask", "causal and dilated(4)"),
    "blocks": _role("mask", "blocks(4)"),
    "previous_block": _role("mask", "previous_block(4)"),
    "strided": _role("mask", "strided(4)"),
    "fixed": _role("mask", "fixed(4)"),
    "globals": _role("mask", "window(4) or globals"),
    "disc": _role("mask", "disc(2)"),
    "squares": _role("mask", "squares(2, shift = 1)"),
    # scores
    "softcap": _role("score", "softcap(50)"),
    "approximate_softcap": _role("score", "approximate_softcap(50)"),
    "alibi": _role("score", "alibi(2)"),
    "alibi_slope": _role("score", "s - alibi_slope(h, 2) * (q - k)"),
    "tilt": _role("score", "tilt(slope)"),
    "relative": _role("score", "relative(near, 4)"),
    "t5": _role("score", "t5(buckets)"),
    "bucket": _role("score", "s + buckets[bucket(k - q, 32, 128, yes), h]"),
    "offsets": _role("score", "offsets(square, 4)"),
    "proportional": _role("score", "proportional"),
    # weighs
    "clipped": _role("weigh", "clipped(-0.03)"),
    "sink": _role("weigh", "sink(slope)"),
    "softmax1": _role("weigh", "softmax1"),
    "hstu": _role("weigh", "hstu(128)"),
    "pointwise_relu": _role("weigh", "pointwise_relu(128)"),
    "pointwise_relu2": _role("weigh", "pointwise_relu2(128)"),
    "pointwise_sigmoid": _role("weigh", "pointwise_sigmoid(128)"),
    # positions
    "rope": _role("position", "rope(base = 500_000)"),
    "rope_stretched": _role("position", "rope_stretched(4)"),
    "rope_ntk": _role("position", "rope_ntk(4)"),
    "rope_yarn": _role("position", "rope_yarn(4)"),
    "yarn_ramp": _role("position", "pos / (1 + yarn_ramp(c, pairs, 4_096, 10_000, 32, 1))"),
    "interpolated": _role("position", "pos * interpolated(c / pairs, 4)"),
    "rope_llama3": _role("position", "rope_llama3()"),
    "rope_2d": _role("position", "rope_2d()"),
    "learned_positions": "learned_positions(x, longest = 64)",
    "sinusoidal": "sinusoidal(x)",
    "sinusoid": "sinusoid(x, 0, 8)",
    # features and decays
    "elu1": "linear_attention(x, heads = 2, feature = elu1)",
    "rectified": "linear_attention(x, heads = 2, feature = rectified(0.01))",
    "exponential": "linear_attention(x, heads = 2, feature = exponential)",
    "squared": "linear_attention(x, heads = 2, feature = squared)",
    "softmaxed": "linear_attention(x, heads = 2, feature = softmaxed)",
    "favor": "linear_attention(x, heads = 2, feature = favor(w, scale = 4 ^ -0.25))",
    "random_relu": "linear_attention(x, heads = 2, feature = random_relu(w))",
    "hashed_attention": 'hashed_attention(x, heads = 2, bits = 8, anchors = 6, direction = "causal")',
    "retention": "recur(y, y, y, decay = retention)",
    "gated": "recur(tag(y, gate = split(-abs(x), 2)), y, y, decay = gated)",
    "selective": "recur(tag(y, step = cut(x ^ 2, 0, 2)), y, y, decay = selective(slope))",
    # convolutions
    "places1d": "places1d(x, kernel = 3, stride = 2)",
    "places2d": "places2d(x, columns = 4, kernel = 3)",
    "causal_conv1d": "causal_conv1d(x, kernel = 3, segment = x.segment)",
    "depthwise_conv1d": "depthwise_conv1d(x, kernel = 3)",
    "conv1d": "conv1d(x, 5, kernel = 3, stride = 2)",
    "depthwise_conv2d": "depthwise_conv2d(x, columns = 4)",
    "conv2d": "conv2d(x, 5, columns = 4, kernel = 2, stride = 2, pad = 0)",
    "unfold2d": "unfold2d(x, columns = 4)",
    "avg_pool1d": "avg_pool1d(x)",
    "max_pool1d": "max_pool1d(x, stride = 2)",
    "avg_pool2d": "avg_pool2d(x, columns = 4) - x",
    "max_pool2d": "max_pool2d(x, columns = 4, stride = 2)",
    "avg_pool": "avg_pool(x, places1d(x, kernel = 5))",
    "max_pool": "max_pool(x, places1d(x, kernel = 5))",
    "patches": "linear(patches(image, side = 2), 8)",
    "upsample2d": "upsample2d(x, columns = 4, factor = 2)",
    "squeeze_excite": "squeeze_excite(x, ratio = 2)",
    # tokens
    "shift": "shift(x, by = 2)",
    "mean_pool": "mean_pool(x)",
    "mean_real": "mean_real(x)",
    "class_token": "class_token(x)",
    "registers": "registers(x, count = 4)",
    "grid": "attention(grid(x, columns = 4), heads = 2, mask = disc(2))",
    "shorten": "shorten(x, count = 4)",
    "stretch": "stretch(shorten(x, count = 4), count = 4)",
    "keep": "attention(keep(x, x.real, capacity = 4), heads = 2, mask = unpadded)",
    "cumsum": "cumsum(x)",
    "merged": "merged(x, ids // 5, count = 2)",
    # experts
    "experts": "experts(x, 4, chosen = 2, expert = ffn { hidden = 16 })",
    "balance": "balance(softmax(x), top(x, 2))",
    "z_loss": "z_loss(x)",
    "within_capacity": "route(x, ffn, 8, within_capacity(top(x, 2), count = 8, capacity = 3), 0.5)",
    # recurrence
    "linear_attention": 'linear_attention(x, heads = 2, direction = "causal")',
    "retention_mixer": "retention_mixer(x, heads = 2)",
    "gated_linear_attention": "gated_linear_attention(x, heads = 2, rank = 2)",
    "state_space": "state_space(y, y, y, linear(x, 2))",
    "mamba2": "mamba2(x, head_dim = 4, state = 4)",
    # dropout
    "dropout": "x + dropout(linear(x, 8), 0.1)",
    # quantization
    "signs": "signs(x)",
    "rounded_through": "rounded_through(4 * x)",
    "stepped": "stepped(x, low = -8, high = 7)",
    "codebook": "codebook(x, entries = 6, chosen = 2)",
}
"""Name -> a call in which the entry does something."""


def spec(name: str) -> str:
    """A whole file that uses an entry of the library."""
    return STAGE.replace("CALL", CALLS[name])
