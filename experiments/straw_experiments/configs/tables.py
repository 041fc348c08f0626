"""Tables: labelled rows write a classifier, beside scikit-learn's classifiers.

Command  straw-jax reproduce --only tables
Device   cpu (AMD EPYC, 2 cores)
Time     8 min 50 s of training, all runs, 1 at a time
Result   mean rank among 7 classifiers over data sets and numbers of rows, 3 seeds:
         straw 2.18 ± 0.30
         shared 3.61 ± 0.26
         logistic regression 1.96 ± 0.13
"""

from straw_experiments.configs.published import Published

STUDIES = {"tables": Published("tables", "--steps 600 --splits 3", seeds=3)}
