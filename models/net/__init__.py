"""The networks: encoder, expectation of hidden cells, risk."""
