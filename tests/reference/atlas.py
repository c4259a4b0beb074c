"""A model atlas slot by slot: each slot is None or a dict, found and filled in plain loops."""

import numpy as np


def empty(count):
  return dict.fromkeys(range(count))


def add(slots, arrivals, now, eviction):
  """Puts arrivals {id: update} into the slots, in the order of the ids given.

  Args:
    slots: {slot: None or entry}, changed.
    arrivals: {id: {name: array}}.
    now: the round.
    eviction: 'came' or 'score', least for who makes room; of equals the first slot.

  Returns:
    {id: its slot}.
  """
  places = {}
  for client, update in arrivals.items():
    own = [slot for slot, entry in slots.items() if entry and entry['owner'] == client]
    vacant = [slot for slot, entry in slots.items() if not entry]
    if own:
      slot, fresh = own[0], {}
    elif vacant:
      slot, fresh = vacant[0], {'score': 0.0, 'strikes': 0}
    else:
      others = [slot for slot, entry in slots.items() if entry['owner'] not in arrivals]
      slot, fresh = min(others, key=lambda s: slots[s][eviction]), {'score': 0.0, 'strikes': 0}
    slots[slot] = {**(slots[slot] or {}), 'owner': client, 'update': update, 'came': now, **fresh}
    places[client] = slot
  return places


def judge(slots, coefficients, decay):
  """Averages coefficients {slot: [U]} into the scores."""
  for slot, entry in slots.items():
    if entry:
      entry['score'] = decay * entry['score'] + (1 - decay) * np.mean(coefficients[slot])
      entry['strikes'] = entry['strikes'] + 1 if entry['score'] < 0 else 0


def drop(slots, strikes):
  out = [slot for slot, entry in slots.items() if entry and entry['strikes'] >= strikes]
  if out:
    slots[min(out, key=lambda s: slots[s]['score'])] = None


def lengths(slots, names):
  """Returns the length of the named parts of each update: {slot: number}."""
  return {slot: np.sqrt(sum(np.square(entry['update'][name]).sum() for name in names))
          for slot, entry in slots.items() if entry}


def scales(slots, units, how):
  """Returns {slot: [U]}, the scale of each unit.

  Args:
    slots: of the atlas.
    units: a list of lists of names.
    how: 'whole' or 'layer', what gets the median's length; 'none': nothing does.
  """
  made = {slot: np.zeros(len(units)) for slot in slots}
  for u, names in enumerate(units):
    whole = [name for part in units for name in part]
    measured = lengths(slots, whole if how == 'whole' else names)
    above = {slot: length for slot, length in measured.items() if length > 0}
    for slot in measured if how == 'none' else above:
      made[slot][u] = 1 if how == 'none' else np.median([*above.values()]) / measured[slot]
  return made


def merge(params, weights, units, slots):
  """Returns x[u] + sum_k w_ku a_k[u] for weights {slot: [U]}."""
  merged = dict(params)
  for u, names in enumerate(units):
    for slot, entry in slots.items():
      if entry:
        for name in names:
          merged[name] = merged[name] + weights[slot][u] * entry['update'][name]
  return merged
