"""What a person sees of a training: plots, tables and words in MLflow, and the same as one page of HTML."""
