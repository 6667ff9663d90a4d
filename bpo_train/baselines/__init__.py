"""Alignment of the answering model itself: what BPO is compared with (paper, sections 4.2 and 4.3)."""
