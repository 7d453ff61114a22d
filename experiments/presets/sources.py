"""Where the presets look for the real data sets."""

MINI, TIERED = "data/mini-imagenet", "data/tiered-imagenet"
