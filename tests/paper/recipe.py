"""The presets of the paper, and images and a cell to follow them with."""

from mamltheory import generator
from mamltheory.nas.genotype import random_genotype
from tests.fewshot.small import noise_data

PAPER = ("mini-5", "mini-8", "tiered-5", "tiered-8")
DATA = noise_data()
CELL = random_genotype(generator(0, "cell"))
