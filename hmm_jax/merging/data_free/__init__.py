"""Data-free distillation: inputs are inverted from BatchNorm statistics, then distilled on."""
