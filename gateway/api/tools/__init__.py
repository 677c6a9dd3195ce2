"""Tools for models: what there is, what a model's calls mean, how they are run, and what the model is told."""
