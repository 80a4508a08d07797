from tests.service import service, spec

__all__ = ["service", "spec"]
