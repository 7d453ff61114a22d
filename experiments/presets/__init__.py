"""Named settings of the commands; every number of the paper's has its source beside it."""

from experiments.presets.demo import DEMO_EVALUATE, DEMO_SEARCH, DEMO_THEORY, DEMO_TRAIN
from experiments.presets.evaluate import EVALUATE
from experiments.presets.meta_train import META_TRAIN
from experiments.presets.search import SEARCH
from experiments.presets.studies import CORRELATION, STABILITY
from experiments.presets.table import TABLE
from experiments.presets.theory import CONVERGENCE, DRIFT, EQUIVALENCE
from experiments.presets.train import TRAIN
