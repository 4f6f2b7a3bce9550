"""Full-batch gradient descent as in a textbook: order, step and optimizer of a job, against the closed NumPy loop.

The same path as a job's in all but the loss: positions become samples by the stream's own order, a batch is one whole
epoch, and `Stepper` moves what `build_optimizer` made of `optimizer: {kind: sgd, momentum: 0}`. A job's loss is
cross-entropy; the textbook's is the mean of squares, which `Stepper` takes as its criterion.
"""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.job import OptimizerSection
from pipeline.order import Order
from trainer.batch import Batch
from trainer.optimizers import build_optimizer
from trainer.step import Stepper

X_ND = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0], [1.0, 4.0]])
Y_N = np.array([1.0, 2.0, 3.0, 4.0])
LR, NUM_STEPS = 0.01, 1000


def closed_loop():
    theta = np.zeros(2)
    for _ in range(NUM_STEPS):
        theta -= LR * 2.0 / len(X_ND) * X_ND.T @ (X_ND @ theta - Y_N)
    return theta


def trained(dtype, accumulate):
    """Theta after as many epochs of one batch each as the loop has steps, each in its own order."""
    order, num_samples = Order(len(X_ND), seed=3, shuffle=True), len(X_ND)
    model = nn.Linear(2, 1, bias=False, dtype=dtype)
    nn.init.zeros_(model.weight)
    optimizer = build_optimizer(OptimizerSection(kind="sgd", momentum=0.0, lr=LR), model)
    stepper = Stepper(model, optimizer, accumulate=accumulate, criterion=nn.functional.mse_loss)
    orders = set()
    for step in range(NUM_STEPS):
        start, stop = step * num_samples, (step + 1) * num_samples
        rows = [key.sample_index for key in order.keys(start, stop)]
        orders.add(tuple(rows))
        batch = Batch(
            step=step,
            epoch=step,
            start=start,
            stop=stop,
            recipe="",
            digest="",
            images=torch.tensor(X_ND[rows], dtype=dtype),
            labels=torch.tensor(Y_N[rows], dtype=dtype)[:, None],
            sample_ids=torch.tensor(rows),
        )
        result = stepper.step(batch, lr=LR)
        assert not result.was_skipped
    assert len(orders) > 1, "the order was to change from epoch to epoch"
    return model.weight.detach().numpy()[0]


@pytest.mark.parametrize(
    ("dtype", "accumulate", "within"),
    [(torch.float32, 3, 1e-6), (torch.float64, 1, 1e-12)],
    ids=["float32 in three micro-batches", "float64"],
)
def test_a_batch_of_the_whole_data_set_is_the_textbooks_gradient_descent(dtype, accumulate, within):
    """theta -= lr * 2/n * X^T (X theta - y), 1,000 times from zero: the order within the batch, its micro-batches and
    the division of parameters into decayed and others must not show."""
    assert trained(dtype, accumulate) == pytest.approx(closed_loop(), rel=0, abs=within)


def test_the_textbooks_numbers_themselves():
    """y = x exactly: the loop is on its way from (0, 0) to (0, 1), and not yet there, so that an error would show."""
    theta = closed_loop()
    assert theta == pytest.approx([0.0, 1.0], abs=0.1)
    assert abs(theta[0]) > 1e-3
