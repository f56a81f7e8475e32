"""Measuring: what a trained network gets right, how sure it is, and what it withstands."""
