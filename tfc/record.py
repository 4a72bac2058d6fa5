"""A frozen dataclass that is made quickly."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

__all__ = ["record"]

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen: bool, eq: bool = True, **options: Any) -> Any:
        """`dataclass`, frozen in the eyes of type checkers only: Python's own freezing makes an object four times as
        slowly, and a deep model's front half makes a hundred thousand. For what there are many of; nobody assigns to
        a field."""
        assert frozen

        def make(cls: type) -> type:
            return dataclass(eq=eq, unsafe_hash=eq and "__hash__" not in cls.__dict__, **options)(cls)

        return make
