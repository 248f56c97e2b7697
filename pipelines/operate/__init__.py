"""Tools of operators: dead letters sent again, scores reproduced, a continuous audit."""
