"""Probabilities that mean what they say."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from grace_lightning.metrics.classification import known, reliability

LEAST, MOST = 0.05, 20.0
"""Bounds of a temperature, so that a network that errs nowhere keeps probabilities below one."""


class Calibration(NamedTuple):
    """A temperature, and the expected calibration error without and with it (None where nothing is labelled)."""

    temperature: float
    error_before: float | None
    error_after: float | None


def fit_temperature(margin: Tensor, label: Tensor) -> float:
    """The temperature T for which the probabilities sigmoid(margin / T) are the likeliest (Guo et al., ICML 2017).

    Parameters
    ----------
    margin : (M,) float32, log-odds of the positive class
    label : (M,) int64, see :class:`grace_lightning.graph.Label`; unless both classes occur, T is 1
    """
    margins, labels = (values.double().cpu().numpy() for values in known(margin, label))
    if len(np.unique(labels)) < 2:
        return 1.0
    against = np.where(labels == 1, -margins, margins)

    def surprise(log_temperature: float) -> float:
        return float(np.logaddexp(0, against / math.exp(log_temperature)).mean())

    found = minimize_scalar(surprise, bounds=(math.log(LEAST), math.log(MOST)), method="bounded")
    return math.exp(float(found.x))


def calibration(probability: Tensor, label: Tensor, temperature: float) -> Calibration:
    """Expected calibration errors of probabilities that a temperature has been applied to, without and with it.

    Parameters
    ----------
    probability : (M,) float32
    label : (M,) int64
    temperature : that the log-odds were divided by
    """
    before = torch.sigmoid(temperature * torch.logit(probability.double())).float()
    return Calibration(temperature, reliability(before, label).error, reliability(probability, label).error)
