"""Units: what is attached, with its tensors. One file for each kind that has some."""
