"""Tools of operators: dead letters sent again, scores reproduced."""
