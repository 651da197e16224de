"""What the sizes and options of a dual-axis transformer may be, beside one another."""

from __future__ import annotations

import itertools

from calm_jax import config as configs
from calm_jax.errors import ConfigError


def check(config: configs.DualAxis, patch: int) -> None:
    """Raises `ConfigError` when the sizes of the config contradict each other."""
    _check_ranges(config)
    if config.width % config.heads or (config.width // config.heads) % 2:
        raise ConfigError(
            "the width must be an even multiple of the heads (rotary position)",
            where="transformer.width",
            found=f"width {config.width}, heads {config.heads}",
        )
    if config.mixing == "signed" and config.width % config.mixing_heads:
        raise ConfigError(
            "the width must be a multiple of the mixing heads",
            where="transformer.mixing_heads",
            found=f"width {config.width}, mixing_heads {config.mixing_heads}",
        )
    for name in ("readout_frames", "linear_context"):
        if getattr(config, name) % patch:
            raise ConfigError(
                "must be a whole number of codes",
                where=f"transformer.{name}",
                found=getattr(config, name),
                expected=f"a multiple of the patch, {patch} frames",
            )
    if config.linear_start and not config.linear_context:
        raise ConfigError(
            "there is no linear path to start",
            where="transformer.linear_start",
            remedy="Set transformer.linear_context too.",
        )
    if config.linear_level and not config.linear_start:
        raise ConfigError(
            "whether the linear path has a level is chosen when its start is fitted",
            where="transformer.linear_level",
            remedy="Set transformer.linear_start too.",
        )
    if config.linear_knots and not config.linear_start:
        raise ConfigError(
            "maps by roughness are fitted with the start of the linear path",
            where="transformer.linear_knots",
            remedy="Set transformer.linear_start too.",
        )
    knots = config.linear_knots
    if len(knots) == 1 or any(not a < b for a, b in itertools.pairwise(knots)):
        raise ConfigError(
            "knots must be at least two, in ascending order",
            where="transformer.linear_knots",
            found=knots,
            expected="(0.05, 0.3, 1.0, 2.0)",
        )
    if config.window_scale and config.values == "none":
        raise ConfigError(
            "the scale of the window is of frame values, and the model takes none",
            where="transformer.window_scale",
            remedy="Set transformer.values to difference.",
        )
    if config.linear_context and not config.readout_frames:
        raise ConfigError(
            "a linear path needs a read-out",
            where="transformer.linear_context",
            remedy="Set transformer.readout_frames too.",
        )


def _check_ranges(config: configs.DualAxis) -> None:
    """Each number on its own, and parts that nothing would reach."""
    least = {
        "width": 1, "layers": 1, "heads": 1, "ffn": 1, "mixing_heads": 1, "mixing_rank": 1,
        "inferred_rank": 1, "neurons_per_trial": 1, "noise_neighbours": 1, "scheduled_block": 1,
        "readout_frames": 0, "readout_after": 0, "readout_weight": 0, "linear_context": 0,
        "code_weight": 0,
    }  # fmt: skip
    for name, low in least.items():
        if not getattr(config, name) >= low:
            raise ConfigError(
                "too small",
                where=f"transformer.{name}",
                found=getattr(config, name),
                expected=f"at least {low}",
            )
    for name in ("dropout", "noise_probability", "scheduled_probability"):
        high = 1.0 - (name == "dropout") * 1e-6
        if not 0 <= getattr(config, name) <= high:
            raise ConfigError(
                "not a probability" if name != "dropout" else "not a rate of dropout",
                where=f"transformer.{name}",
                found=getattr(config, name),
                expected="0 to 1" if name != "dropout" else "0 or more, below 1",
            )
    if config.inferred and config.values == "none":
        raise ConfigError(
            "embeddings are inferred from frame values, and the model takes none",
            where="transformer.inferred",
            remedy="Set transformer.values to both.",
        )
    if config.inferred and config.width % config.mixing_heads:
        raise ConfigError(
            "the width must be a multiple of the mixing heads",
            where="transformer.mixing_heads",
            found=f"width {config.width}, mixing_heads {config.mixing_heads}",
        )
    named = config.neuron_embedding or config.session_embedding or config.inferred
    if config.mixing == "signed" and not named:
        raise ConfigError(
            "signed mixing reads its couplings from embeddings, and there are none",
            where="transformer.mixing",
            remedy="Set transformer.neuron_embedding, or transformer.mixing softmax.",
        )
