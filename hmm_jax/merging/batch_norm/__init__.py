"""BatchNorm statistics of merged models: pooled, recalibrated, repaired."""
