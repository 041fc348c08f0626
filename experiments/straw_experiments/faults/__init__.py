"""A campaign of faults: what the commands do when processes, files, data or arguments go wrong.

`python -m straw_experiments.faults` makes faults at random, judges what the commands answer, and
prints a table. Every trial follows from the seed, its kind and its number, so it can be done again.

- `outcomes`: how an answer is judged, and the table.
- `damage`: the ways to damage a file.
- `studies`: small studies, and what they publish.
- `stored`, `processes`, `data`, `exports`, `answers`: the kinds of faults.
- `lines`, `arguments`: wrong command lines and wrong arguments, as lists.
"""
