"""Every error of the learning that a user can cause or mend.

ModelError
├── TableError       a table of rows is not as it must be
├── BudgetError      an alert budget does not say one thing, or cannot be kept with what is known
├── ArtifactError    a model's files do not match their manifest
└── RegistryError    MLflow has no such model, or cannot be reached and there is no copy
"""


class ModelError(Exception):
    """Base of every error of this package that a user can mend."""
