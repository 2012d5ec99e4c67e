"""How a structure is found and trained.

| folder | what it does |
|---|---|
| strategies | ways to choose candidates for a budget: the searches, the probes, the baselines |
| bilevel, gates | the S3PET search: a supernet, and gates that meet a budget |
| selection | from scores to the candidates that fit |
| tasks | rows of text become token ids and labels |
| training | the training loop, and what searching shares with it |
| trainer | a search inside the Trainer of transformers |

``README.md`` has the maths in one page.
"""
