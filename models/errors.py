"""Errors that a user can fix.

ModelError
├── TableError       a table does not have the required form
├── LeakError        fields of the event know what is to be predicted
├── BudgetError      an alert budget is not valid, or its threshold cannot be computed
├── ArtifactError    a model's files do not match their manifest
└── RegistryError    MLflow does not have the model, or is not available and there is no copy
"""


class ModelError(Exception):
    """Base class of the errors in this package that a user can fix."""
