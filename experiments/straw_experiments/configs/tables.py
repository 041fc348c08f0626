"""Tables: labelled rows write a classifier, beside scikit-learn's classifiers.

Command  straw-jax reproduce --only tables
Device   cpu (AMD EPYC, 2 cores)
Time     33 min 34 s of training, all runs, 1 at a time
Result   mean rank among 7 classifiers over data sets and numbers of rows, 3 seeds:
         straw 2.27 ± 0.15
         shared 3.18 ± 0.13
         logistic regression 2.00 ± 0.13
"""

from straw_experiments.configs.published import Published

STUDIES = {"tables": Published("tables", "", seeds=3)}
