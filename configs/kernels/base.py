"""What every kernel section has: a kind, and a name under which it is stored and asked for."""

from pydantic import Field

from ntkpipe.configs.base import Section

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*$"
"""What kernels, solutions, splits and runs may be called: safe as a folder name and in a URL."""


class KernelSection(Section):
    """One kernel of a run. Final sections narrow ``kind`` to a literal."""

    kind: str
    name: str = Field("", pattern=f"{NAME_PATTERN}|^$")
    """How the kernel is stored and asked for; the kind unless two kernels of one kind differ."""

    @property
    def label(self) -> str:
        """The name under which the kernel is stored; a hyphen for the colon of ``class:3``."""
        return self.name or self.kind.replace(":", "-")
