"""The names of the analyses, in the order they are run and shown."""

NAMES = (
    "tuning",
    "embeddings",
    "dynamics",
    "information",
    "landscape",
    "curriculum",
    "latents",
    "freezing",
    "coupling",
    "timescales",
    "codes",
)
