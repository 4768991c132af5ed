"""Judging: metrics, plots, report, linear baselines."""
