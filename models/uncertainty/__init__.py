"""Uncertainty: pooling, recalibration, conformal sets, the OOD gate and scores, all on Predictive alone."""
