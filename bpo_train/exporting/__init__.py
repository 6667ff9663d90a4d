"""The parts of `bpo-train export`: what a run holds, and one module for each form that it leaves in."""
