"""Tasks whose rows are images; one file each."""
