"""What any study needs: runs, checkpoints, processes, records; it knows no study."""

from straw_experiments import require_extra

require_extra()
