"""Each family's option for the width of its feed-forwards, unless it is ``intermediate_size``."""

WIDTH = {"distilbert": "hidden_dim", "gpt2": "n_inner", "opt": "ffn_dim", "t5": "d_ff"}
