"""Small students that tell pictures apart, to be exported."""

from pathlib import Path

import torch
from authors_checkpoint import settle

from rdcd.models.student import Student
from rdcd.models.weights import save_student


def write_student(folder: Path, trunk: str, *, card: dict | None = None) -> Path:
    """Write a student of random weights whose batch norms have seen pictures; 32 px."""
    torch.manual_seed(0)
    student = Student(trunk=trunk, dim=16, kd_dim=24)
    settle(student.trunk)
    return save_student(folder / f"{trunk}.safetensors", student.eval(), size=32, card=card)
