"""Optimizers by name.

In:  a model and the job's `optimizer` section.
Out: a torch optimizer over its trainable parameters.
Never sets a schedule: `trainer/schedules.py` gives each step's learning rate.

Weight decay is for weights only. Biases and the weights of norm layers (all parameters of fewer than two
dimensions) are left out, as is customary since He et al. 2019 ("Bag of Tricks", section 3.1): pulling a scale or an
offset to zero limits no capacity. The gradients' norm and clipping take in all parameters.

`sgd` with momentum 0 is theta -= lr * gradient, and full-batch gradient descent where the batch is the whole source:
`batch_size` its number of samples, `accumulate` as many parts as memory asks for. A test has the textbook's numbers.
"""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pipeline.job import OptimizerSection


def build_optimizer(section: OptimizerSection, model: nn.Module) -> Optimizer:
    """Each trainable parameter is in one of two groups: decayed (two or more dimensions), not decayed (the rest)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2]
    not_decayed = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [
        {"params": parameters, "weight_decay": weight_decay}
        for parameters, weight_decay in ((decayed, section.weight_decay), (not_decayed, 0.0))
        if parameters
    ]
    if section.kind == "sgd":
        return SGD(groups, lr=section.lr, momentum=section.momentum)
    make = Adam if section.kind == "adam" else AdamW
    return make(groups, lr=section.lr, betas=section.betas, eps=section.eps)
