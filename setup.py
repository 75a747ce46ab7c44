"""What setup.cfg cannot say: installed, plumage.py and the folders beside it are one package, ``plumage``.

So an installed Plumage takes no name but its own: many a project has a ``data`` or ``models`` of its own. An editable
install needs nothing of this, since plumage.py finds the folders beside itself.
"""

from setuptools import setup
from setuptools.command.build_py import build_py

ROOMS = ("ablation", "birds", "data", "engine", "hardware", "inference", "models", "report", "rundir")


class OnePackage(build_py):
    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            self.py_modules, self.package_dir = [], {"plumage": "."}
            self.packages = ["plumage", *(f"plumage.{room}" for room in ROOMS)]

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = [module for module in super().find_package_modules(package, package_dir) if module[1] != "setup"]
        return [(package, "__init__" if name == "plumage" else name, file) for _, name, file in modules]


setup(cmdclass={"build_py": OnePackage})
