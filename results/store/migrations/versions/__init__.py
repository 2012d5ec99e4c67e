"""One file per revision. A released one is never edited, and imports no tables of today."""
