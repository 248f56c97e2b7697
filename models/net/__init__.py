"""Networks: encoder, prediction of hidden cells."""
