"""Adds to pyproject.toml the one thing it cannot say: the wheel carries configs/ as rdcd/configs/."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies the top-level configs/ into the built package; an editable install reads it in place."""

    def run(self) -> None:
        package = Path(self.build_lib, "rdcd")
        if self.editable_mode:
            return super().run()
        shutil.rmtree(package, ignore_errors=True)  # an earlier build/ may hold files since removed
        super().run()
        for config in self.configs():
            target = package / config
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(config, target)

    def get_source_files(self) -> list[str]:
        """Return what goes into the source distribution."""
        return [*super().get_source_files(), *map(str, self.configs())]

    @staticmethod
    def configs() -> list[Path]:
        return sorted(Path("configs").rglob("*.yaml"))


setup(cmdclass={"build_py": BuildWithConfigs})
