"""The training transform one image at a time: with Pillow, as RFS's pipeline has it, and in plain real
numbers.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _window(image, offset):
    height, width, _ = image.shape
    padding = int(max(map(abs, offset)))
    padded = ImageOps.expand(Image.fromarray(image), padding, fill=0)
    top, left = (int(v) + padding for v in offset)
    return padded.crop((left, top, left + width, top + height))


def augment_with_pillow(image, offset, mirrored, factors, order, mean, std):
    """Pad with black, cut the window, change the colours in the given order, mirror, normalise: H×W×3
    floats.
    """
    picture = _window(image, offset)
    for change in order:
        picture = ENHANCERS[change](picture).enhance(float(factors[change]))
    if mirrored:
        picture = ImageOps.mirror(picture)
    return (np.asarray(picture) / 255.0 - np.array(mean)) / np.array(std)


def augment_in_reals(image, offset, mirrored, factors, order, mean, std):
    """The same without Pillow's truncation to whole grey levels after every change."""
    x = np.asarray(_window(image, offset)) / 255.0
    for change in order:
        grey = x @ np.array([0.299, 0.587, 0.114])
        base = (np.zeros(1), grey.mean(), grey[:, :, None])[change]
        x = np.clip(base + factors[change] * (x - base), 0, 1)
    return ((x[:, ::-1] if mirrored else x) - np.array(mean)) / np.array(std)
