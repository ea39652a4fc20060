"""How near do networks that are decoupled at every boundary come to backprop, at equal epochs?

python -m experiments.accuracy --network=mlp --epochs=20

settings.py   networks, methods, and the learning rates that are tried
runs.py       training runs, two at a time, each kept in a folder of its own
costs.py      time, multiplications and memory of a step
study.py      trials on held-out examples, then the chosen rates on the test set
page.py       the table and the learning curves
"""
