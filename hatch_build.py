"""What the build does beside pyproject.toml: a wheel carries `examples/`, for `tid examples`; a clone has its own."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["examples"] = "client/examples"
