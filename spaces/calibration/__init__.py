"""What kinds learn from data before they are trained: directions, supports, least squares.

| file | what it does |
|---|---|
| calibrate | one pass over calibration data for all kinds of a structure |
| statistics | sums over activations and gradients |
"""
