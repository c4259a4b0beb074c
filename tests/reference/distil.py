"""Distillation of softmax regressions by full-batch gradient descent, step by step."""

import numpy as np


def probabilities(model, x, temperature=1.0):
  logits = (x @ model['kernel'] + model['bias']) / temperature
  p = np.exp(logits - logits.max(axis=1, keepdims=True))
  return p / p.sum(axis=1, keepdims=True)


def target(teachers, weights, x, temperature):
  """Mixes what the teachers say, class by class, and normalizes each row."""
  mixed = np.zeros((len(x), weights.shape[1]))
  for teacher, row in zip(teachers, weights, strict=True):
    mixed += row * probabilities(teacher, x, temperature)
  total = mixed.sum(axis=1, keepdims=True)
  return np.where(total > 0, mixed / np.where(total > 0, total, 1), 1 / mixed.shape[1])


def divergence(p, q):
  """KL(p || q), mean over rows; 0 log 0 = 0."""
  logs = np.log(np.where(p > 0, p, 1)) - np.log(q)
  return (p * logs).sum(axis=1).mean()


def distil(student, teachers, weights, x, *, lr, temperature, keep):
  """Takes a step for each of `weights`, a list of [K, C]. Returns the student and the losses."""
  first, student, losses = student, dict(student), []
  for now in weights:
    wanted, before = target(teachers, now, x, temperature), probabilities(first, x)
    soft, plain = probabilities(student, x, temperature), probabilities(student, x)
    losses.append(temperature**2 * divergence(wanted, soft) + keep * divergence(before, plain))
    # The gradient of KL(p || softmax(z / T)) by z is (softmax(z / T) - p) / T.
    logits = (temperature * (soft - wanted) + keep * (plain - before)) / len(x)
    student = {'kernel': student['kernel'] - lr * x.T @ logits,
               'bias': student['bias'] - lr * logits.sum(axis=0)}
  return student, losses
