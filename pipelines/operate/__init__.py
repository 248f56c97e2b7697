"""Tools of operators: dead letters listed and sent again."""
