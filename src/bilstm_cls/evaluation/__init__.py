"""Metrics, explanations, plots, reports and linear baselines."""
