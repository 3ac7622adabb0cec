"""tfaccel's tests. They and all that they start compute with the same kernels."""

import os

from tfaccel import onednn

onednn.prefer(os.environ)
