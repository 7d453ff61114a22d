"""Where the presets look for images: the real data sets, and the embedded stand-in for miniImageNet."""

MINI, TIERED = "data/mini-imagenet", "data/tiered-imagenet"
GLYPHS_MINI = "glyphs-mini"
