"""Pages of results: Markdown templates, filled with what the studies left."""

from straw_experiments import require_extra

require_extra()
