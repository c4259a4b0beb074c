"""Texts as vectors of hashed n-grams."""

from collections.abc import Sequence
import re

import numpy as np

_ADDRESS = re.compile(r'https?://\S+')


def hashed(texts: Sequence[str], *, features: int) -> np.ndarray:
  """Returns hashed counts of words and word pairs in `features` buckets: float32 [n, F].

  Words are lowercase, of two characters or more; URLs are left out, as hardly any occurs
  twice. An n-gram's sign is part of its hash, so that colliding n-grams cancel on average;
  vectors have norm 1, or 0 for a text without words. The hash is MurmurHash3, the same in
  every process.

  Reference: K. Weinberger et al. "Feature Hashing for Large Scale Multitask Learning".
  ICML 2009. arXiv:0902.2206.
  """
  # Imported here, as it takes a second that other data sets need not spend.
  from sklearn.feature_extraction.text import HashingVectorizer
  vectorizer = HashingVectorizer(n_features=features, ngram_range=(1, 2), dtype=np.float32)
  return vectorizer.transform(_ADDRESS.sub(' ', text) for text in texts).toarray()
