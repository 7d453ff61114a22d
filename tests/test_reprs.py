"""What a notebook prints of a value fits on a line."""

import dataclasses

import torch
from torch import nn

import mamltheory as mt
from mamltheory.fewshot.glyphs import glyph_data

NET = mt.FullyConnected(4, width=8, depth=1)
TASK = mt.Task(torch.zeros(5, 3, 84, 84), torch.zeros(5, 5), torch.ones(10, 3, 84, 84), torch.zeros(10, 5))


def test_tasks_and_images_show_their_sizes():
    assert repr(TASK) == "Task(query 5 × 3×84×84, support 10 × 3×84×84, outputs 5, float32)"
    data = glyph_data(16, 3, 2, 2, samples_per_class=4)
    splits = "train 12 in 3 classes, val 8 in 2 classes, test 8 in 2 classes"
    assert repr(data) == f"ImageData('glyphs', images of 16×16: {splits})"
    assert repr(data.val) == "ImageSplit(8 images of 16×16 in 2 classes)"


def test_models_show_what_they_are_made_of():
    assert repr(NET.model) == f"Model({NET!r}, scale 8)"
    frozen = nn.Linear(2, 1)
    frozen.bias.requires_grad_(False)
    model, _ = mt.from_module(frozen)
    assert repr(model) == "Model(Linear, 1 frozen)"
    assert repr(mt.centred(NET.model, NET.initialise(mt.generator(0, "init")))).count("centred") == 1
    assert len(repr(mt.Model(lambda params, x: x @ params["w"]))) < 120


def test_a_training_tells_its_progress_and_its_record_is_short():
    x = torch.eye(2, 4, dtype=torch.float64)
    y, seen = torch.ones(2, 1, dtype=torch.float64), []
    tasks, start = [mt.Task(x, y, x, y)], NET.initialise(mt.generator(0, "init"))
    settings = {"inner": mt.InnerLoop(0.1), "eta0": 0.1, "steps": 3}
    record = mt.train(NET.model, start, tasks, **settings, kernel_steps=[3], progress=seen.append)
    assert tuple(seen) == record.observations
    assert [each.step for each in seen] == [0, 1, 2, 3]
    text = repr(record)
    losses = record.losses()
    assert text.startswith(f"TrainingRecord(3 steps, loss {losses[0]:.3g} → {losses[3]:.3g}, moved ")
    assert "kernels at [0, 3]" in text
    assert len(text) < 150
    assert dataclasses.is_dataclass(record)
