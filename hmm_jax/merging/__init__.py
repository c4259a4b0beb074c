"""Merge operators on stacked models, and what a merged model needs afterwards."""
