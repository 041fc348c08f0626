"""Tables: labelled rows write a classifier, beside scikit-learn's classifiers.

Command  straw-jax reproduce --only tables
"""

from straw_experiments.configs.published import Published

STUDIES = {"tables": Published("tables", "--steps 600 --splits 3", seeds=3)}
