"""The work of the demonstration."""

from experiments.settings import Evaluate, Search, Theory, Train

# The demonstration: fitted to ten minutes on two cores, everything on embedded data.
DEMO_THEORY = Theory(widths=(64, 128, 256, 512), seeds=4, steps=50)
_DEMO_SIZE = {"channels": 8, "cells": 3, "stem_stride": 2, "image_size": 32, "device": "cpu"}
DEMO_SEARCH = Search(**_DEMO_SIZE, outputs="sum", tasks=3, repeats=2)
DEMO_TRAIN = Train(**_DEMO_SIZE, epochs=6, learning_rate=0.1, milestones=(4, 5), drop_path=0.0)
DEMO_EVALUATE = Evaluate(tasks=200)
