"""Train, measure and export prompt rewriters. Needs the extra `train`."""

import os

# Whatever is trained here is nobody else's business: TRL's trainers report each run to their makers unless told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
