"""Measuring rewriters."""
