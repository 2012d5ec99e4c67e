"""Which packages there are: the rooms lie at the root, and are installed under ``sparsearch``."""

from setuptools import find_packages, setup

ROOMS = ("spaces", "search", "results", "workers", "service")

packages = find_packages(include=["sparsearch", "sparsearch.*"])
for room in ROOMS:
    packages += [f"sparsearch.{name}" for name in find_packages(include=[room, f"{room}.*"])]

setup(packages=packages, package_dir={f"sparsearch.{room}": room for room in ROOMS})
