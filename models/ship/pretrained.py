"""Save and load a pretrained network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save

from models.fit.distill import untrained_student
from models.fit.pretrain import PretrainConfig, Pretrained
from models.net.expectation import Expectation
from models.score.rules import Rules
from models.ship.manifest import read_files, write_files

FILES = ("pretrained.json", "pretrained.safetensors")


def save_pretrained(pretrained: Pretrained, folder: Path, *, lineage: Mapping[str, str] | None = None) -> str:
    """Write a pretrained network as safetensors and JSON files with a manifest. Return the SHA-256 of the manifest."""
    networks = {"expectation": pretrained.expectation, "student": pretrained.student}
    tensors = {f"{name}.{k}": v.contiguous() for name, net in networks.items() for k, v in net.state_dict().items()}
    tensors |= {f"rules.{k}": torch.from_numpy(v) for k, v in pretrained.rules.arrays().items()}
    about = {
        "config": asdict(pretrained.config),
        "rules": pretrained.rules.config(),
        "metrics": dict(pretrained.metrics),
    }
    contents = {
        "pretrained.json": json.dumps(about, indent=1, sort_keys=True).encode(),
        "pretrained.safetensors": save(tensors),
    }
    return write_files(folder, contents, lineage=lineage or {})


def load_pretrained(folder: Path, *, expect: str | None = None) -> Pretrained:
    """Load a network written by `save_pretrained`.

    Raises:
        ArtifactError: a file is missing or changed, or the digest is not the expected one.
    """
    _, contents = read_files(folder, FILES, expect=expect)
    about = json.loads(contents["pretrained.json"])
    tensors = load(contents["pretrained.safetensors"])
    arrays = {name: tensor.numpy() for name, tensor in _part(tensors, "rules").items()}
    rules, config = Rules.of_parts(about["rules"], arrays), PretrainConfig(**about["config"])
    network = Expectation(
        rules.columns,
        rules.coding.edges,
        rules.coding.n_codes,
        width=config.width,
        n_layers=config.n_layers,
        context=rules.coding.context,
    )
    network.load_state_dict(_part(tensors, "expectation"))
    student = untrained_student(network)
    student.load_state_dict(_part(tensors, "student"))
    return Pretrained(network.eval(), student.eval(), rules, config, about["metrics"])


def _part(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
