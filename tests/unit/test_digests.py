"""Digests: every byte that is trained on is in them, the label's too."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import xxhash

from pipeline.digests import batch_digest, sample_digest

IMAGE = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
LABEL_3 = bytes([3, 0, 0, 0, 0, 0, 0, 0])


def test_a_sample_is_known_by_its_image_and_then_its_label() -> None:
    """The law for a worker in any language, from bytes written down. Another value here is another protocol."""
    assert sample_digest(IMAGE, 3) == xxhash.xxh3_128_digest(bytes(range(16)) + LABEL_3)
    assert sample_digest(IMAGE, 3).hex() == "6cd1492667264afd7eab3bc1e2fb635a"
    assert sample_digest(IMAGE, -1) == xxhash.xxh3_128_digest(bytes(range(16)) + b"\xff" * 8)


@pytest.mark.parametrize("bit", range(64))
def test_a_label_that_changes_in_any_bit_is_another_sample(bit: int) -> None:
    """It would be trained on, and nothing else would tell: what arrives is checked by its digests alone."""
    labels = np.array([3], np.int64)
    labels.view(np.uint64)[0] ^= np.uint64(1 << bit)
    assert sample_digest(IMAGE, labels[0]) != sample_digest(IMAGE, 3)


def test_a_batch_is_known_by_its_samples_labels_and_ids_in_order() -> None:
    """The law of the digest that stands in metrics.jsonl, of this one sample."""
    sample = xxhash.xxh3_128_digest(bytes(range(16)) + LABEL_3)
    expected = hashlib.sha256(sample + LABEL_3 + bytes([7, 0, 0, 0, 0, 0, 0, 0])).hexdigest()
    assert batch_digest([sample_digest(IMAGE, 3)], np.array([3]), np.array([7])) == expected
