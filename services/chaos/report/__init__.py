"""Reports as single HTML pages, of a chaos run and of the ablation matrix."""
