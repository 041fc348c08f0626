"""Images: the article's experiment, its controls, poses and hypernetworks."""

from straw_experiments import require_extra

require_extra()
