"""Pictures for tests, and transformers' own processor of them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image


def noise(width, height, seed=0):
    """A picture of coarse and fine noise, so that resizing it shows."""
    make = np.random.default_rng(seed)
    fine = np.frombuffer(make.bytes(height * width * 3), np.uint8).reshape(height, width, 3)
    coarse = Image.fromarray(make.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    coarse = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    return Image.fromarray(fine // 4 + coarse // 4 * 3)


def encoded(image, kind="PNG", **options):
    """A file of a picture.   ->  bytes"""
    data = BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def processed(images, tokens):
    """transformers' ``Gemma4ImageProcessorPil``.   ->  its tensors by name"""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return dict(Gemma4ImageProcessorPil(max_soft_tokens=tokens)(images, return_tensors="pt"))


def reference_inputs(images, tokens):
    """What transformers' model takes, and the soft tokens of every image."""
    import torch  # here: the load's driver draws pictures without

    found = processed(images, tokens)
    counts = torch.as_tensor(found["num_soft_tokens_per_image"]).tolist()
    return {
        "pixel_values": found["pixel_values"].float(),
        "image_position_ids": torch.as_tensor(found["image_position_ids"]),
    }, counts
