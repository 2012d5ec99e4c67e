"""Backbones whose linears bitsandbytes keeps in 8 or 4 bits: how they are loaded, and what their weights are.

| file | what it does |
|---|---|
| weights | counts, values and stored parts of such weights; how their modules compute |
| settings | how a backbone was quantised, and the keywords that load it so |
| check | what cannot go to such a backbone, and why |
"""
