"""Texts as vectors of hashed n-grams."""

from collections.abc import Sequence
import re

import numpy as np

_ADDRESS = re.compile(r'https?://\S+')


def hashed(texts: Sequence[str], *, features: int) -> np.ndarray:
  """Counts words and pairs of neighbors in `features` buckets: float32 [n, F].

  Words are in lower case, of two characters or more; addresses of web pages are left out,
  for hardly any comes twice. A bucket's sign is part of the hash, so that n-grams that
  collide cancel on average; rows have norm 1, or 0 where a text has no word. The hash is
  MurmurHash3, the same in every process.

  Reference: K. Weinberger et al. "Feature Hashing for Large Scale Multitask Learning".
  ICML 2009. arXiv:0902.2206.
  """
  # A second that other data sets need not pay.
  from sklearn.feature_extraction.text import HashingVectorizer
  vectorizer = HashingVectorizer(n_features=features, ngram_range=(1, 2), dtype=np.float32)
  return vectorizer.transform(_ADDRESS.sub(' ', text) for text in texts).toarray()
